"""Sums over pairs of samples for many sites and kernels at once, from upper-triangular Gram tiles.

One tile of every site's Gram matrix is made at a time; all kernels are taken from it, and all pairs of sites
contracted with one matrix product. Time n^2 (sum of widths) / 2 multiplications, memory a few tiles a site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.device import Device
from featlens.comparison.forms import Kernel
from featlens.comparison.rows import Rows

__all__ = ["Moments", "accumulate", "kernel_tile", "tile_size"]

Floats = NDArray[np.float64]
Pair = tuple[slice, slice]


def tile_size(n: int, sites: int, memory: float) -> int:
    """Rows of a tile: as many as fit with all sites into an eighth of the memory, at most 512."""
    most = int((memory / 8 / (4 * max(sites, 1))) ** 0.5)
    return max(16, min(n, 512, most))


@dataclass
class Moments:
    """Sums of one kernel over pairs of different samples."""

    cross: dict[int, Floats] = field(default_factory=dict)
    """By pair of groups: (A, B) sums of products."""
    own: Floats = field(default_factory=lambda: np.zeros(0))
    """(H,) sums of squares."""
    rows: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(H, n) row sums without the diagonal."""
    diagonal: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(H, n) diagonals."""
    h: dict[int, NDArray[Any]] = field(default_factory=dict)
    """By pair of groups: (n, A, B) sums of products over the other sample; only if asked for."""
    own_h: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(H, n) the same of squares; only if asked for."""


def kernel_tile(kernel: Kernel, gram: Any, left: Any, right: Any, width: float, xp: Any) -> Any:
    """Entries of a kernel from inner products (t, u) and squared norms (t, 1) and (1, u)."""
    if kernel.kind == "linear":
        return gram
    squares = left + right - 2 * gram
    squares = xp.where(squares > 0, squares, xp.zeros_like(squares))
    if kernel.kind == "distance":
        return xp.sqrt(squares)
    return xp.exp(squares * (-0.5 / width**2))


def accumulate(
    rows: Rows,
    pairs: Sequence[Pair],
    kernels: Sequence[Kernel],
    widths: Sequence[Sequence[float]],
    leave_out: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Moments]:
    """Sums for each kernel.

    Parameters
    ----------
    rows
        Centred features of all sites.
    pairs
        Groups of sites to take pairs of: slices of the sites.
    kernels, widths
        Kernels, and for each the bandwidth of every site (ignored but for ``"rbf"``).
    leave_out
        Also the sums that leaving one sample out needs.
    progress
        Called with (tiles done, tiles in all).
    """
    count, n, device = len(rows.handles), rows.n, rows.device
    out = [_blank(rows, pairs, kernel, leave_out) for kernel in kernels]
    blocks = len(rows.starts)
    bounds = [(start, min(start + rows.size, n)) for start in rows.starts]
    xp, done = device.xp, 0
    only_linear = all(kernel.kind == "linear" for kernel in kernels)
    for first in range(blocks):
        rows.hold(first)
        for second in range(first, blocks):
            (i0, i1), (j0, j1) = bounds[first], bounds[second]
            grams = device.empty((count, i1 - i0, j1 - j0), rows.dtype)
            for index in range(count):
                right = rows.block(index, second)
                _product(rows.block(index, first), right, grams, index)
            for kernel, moments, scales in zip(kernels, out, widths, strict=True):
                stack = grams if only_linear else _kernels(rows, kernel, grams, scales, (i0, i1), (j0, j1))
                if first == second:
                    stack[:, xp.arange(i1 - i0), xp.arange(i1 - i0)] = 0
                weight = 1 if first == second else 2
                _contract(moments, stack, pairs, weight, device)
                if kernel.kind != "linear":
                    _row_sums(moments, stack, (i0, i1), (j0, j1), device)
                if leave_out:
                    _row_products(moments, stack, pairs, (i0, i1), (j0, j1), device)
            done += 1
            if progress is not None:
                progress(done, blocks * (blocks + 1) // 2)
    return out


def _blank(rows: Rows, pairs: Sequence[Pair], kernel: Kernel, leave_out: bool) -> Moments:
    count, n = len(rows.handles), rows.n
    sizes = [(a.stop - a.start, b.stop - b.start) for a, b in pairs]
    moments = Moments(
        cross={index: np.zeros(size) for index, size in enumerate(sizes)},
        own=np.zeros(count),
        rows=np.zeros((count, n)),
        diagonal=np.zeros((count, n)),
    )
    if kernel.kind == "linear":
        # Rows of the Gram matrix of centred features sum to zero.
        moments.rows, moments.diagonal = -rows.norms, rows.norms
    elif kernel.kind == "rbf":
        moments.diagonal += 1
    if leave_out:
        moments.h = {index: np.zeros((n, *size), dtype=rows.dtype) for index, size in enumerate(sizes)}
        moments.own_h = np.zeros((count, n))
    return moments


def _product(left: Any, right: Any, out: Any, index: int) -> None:
    if isinstance(out, np.ndarray):
        np.matmul(left, right.T, out=out[index])
    else:
        out[index] = left @ right.T


def _kernels(
    rows: Rows, kernel: Kernel, grams: Any, widths: Sequence[float], i: tuple[int, int], j: tuple[int, int]
) -> Any:
    device = rows.device
    out = device.empty(grams.shape, rows.dtype)
    for index in range(len(rows.handles)):
        left = device.put(rows.norms[index, slice(*i), None].astype(rows.dtype))
        right = device.put(rows.norms[index, None, slice(*j)].astype(rows.dtype))
        out[index] = kernel_tile(kernel, grams[index], left, right, widths[index], device.xp)
    return out


def _contract(moments: Moments, stack: Any, pairs: Sequence[Pair], weight: int, device: Device) -> None:
    flat = device.xp.reshape(stack, (stack.shape[0], -1))
    for index, (a, b) in enumerate(pairs):
        moments.cross[index] += weight * device.get(flat[a] @ flat[b].T).astype(np.float64)
    for site in range(len(moments.own)):
        moments.own[site] += weight * float(flat[site] @ flat[site])


def _row_sums(moments: Moments, stack: Any, i: tuple[int, int], j: tuple[int, int], device: Device) -> None:
    xp = device.xp
    moments.rows[:, slice(*i)] += device.get(xp.sum(stack, axis=2))
    if i != j:
        moments.rows[:, slice(*j)] += device.get(xp.sum(stack, axis=1))


def _row_products(
    moments: Moments,
    stack: Any,
    pairs: Sequence[Pair],
    i: tuple[int, int],
    j: tuple[int, int],
    device: Device,
) -> None:
    xp = device.xp
    # (sample, site, other sample), so that the sums are matrix products.
    turned = [(i, xp.permute_dims(stack, (1, 0, 2)))]
    if i != j:
        turned.append((j, _solid(xp.permute_dims(stack, (2, 0, 1)))))
    for bounds, view in turned:
        for index, (a, b) in enumerate(pairs):
            products = view[:, a] @ xp.permute_dims(view[:, b], (0, 2, 1))
            moments.h[index][slice(*bounds)] += device.get(products)
        squares = view * view
        moments.own_h[:, slice(*bounds)] += device.get(xp.sum(squares, axis=2)).T


def _solid(array: Any) -> Any:
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()
