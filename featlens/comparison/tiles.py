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
from featlens.comparison.entries import Entries, entries_of
from featlens.comparison.forms import Kernel
from featlens.comparison.rows import Rows

__all__ = ["Moments", "accumulate", "inside", "tile_size"]

Floats = NDArray[np.float64]
Pair = tuple[slice, slice]


MOST_ROWS = 384
"""Rows of a tile: products of more rows are no faster, and their tiles fall out of the cache."""


def tile_size(n: int, sites: int, memory: float, widths: float = 0, size: int = 4) -> int:
    """Rows of a tile, at most 384.

    As many as fit into an eighth of the memory as tiles of all sites, and into a quarter as features of
    all widths together, with entries of ``size`` bytes.
    """
    most = int((memory / 8 / (size * max(sites, 1))) ** 0.5)
    if widths:
        most = min(most, int(memory / 4 / (size * widths)))
    return max(16, min(n, MOST_ROWS, most))


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
    noise: Floats = field(default_factory=lambda: np.zeros(0))
    """(H,) what rounding may change entries by; 0 where that is not known."""
    h: dict[int, NDArray[Any]] = field(default_factory=dict)
    """By pair of groups: (anchors, A, B) sums of products over the other sample; only if asked for."""
    own_h: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(H, anchors) the same of squares; only if asked for."""


def accumulate(
    rows: Rows,
    pairs: Sequence[Pair],
    kernels: Sequence[Kernel],
    widths: Sequence[Sequence[float]],
    anchors: NDArray[np.int64] | None = None,
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
    anchors
        Samples, in ascending order, for which to take also the sums that leaving them out needs.
    progress
        Called with (tiles done, tiles in all).
    """
    count, n, device = len(rows.handles), rows.n, rows.device
    entries = [
        [entries_of(kernel, width, norms) for width, norms in zip(scales, rows.norms, strict=True)]
        for kernel, scales in zip(kernels, widths, strict=True)
    ]
    out = [_blank(rows, pairs, each, anchors) for each in entries]
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
            for kernel, moments, each in zip(kernels, out, entries, strict=True):
                stack = grams if only_linear else _kernels(rows, each, grams, (i0, i1), (j0, j1))
                if first == second:
                    stack[:, xp.arange(i1 - i0), xp.arange(i1 - i0)] = 0
                weight = 1 if first == second else 2
                _contract(moments, stack, pairs, weight, device)
                if kernel.kind != "linear":
                    _row_sums(moments, stack, (i0, i1), (j0, j1), device)
                if anchors is not None:
                    _row_products(moments, stack, pairs, anchors, (i0, i1), (j0, j1), device)
            done += 1
            if progress is not None:
                progress(done, blocks * (blocks + 1) // 2)
    return out


def _blank(
    rows: Rows, pairs: Sequence[Pair], entries: Sequence[Entries], anchors: NDArray[np.int64] | None
) -> Moments:
    count, n = len(rows.handles), rows.n
    sizes = [(a.stop - a.start, b.stop - b.start) for a, b in pairs]
    moments = Moments(
        cross={index: np.zeros(size) for index, size in enumerate(sizes)},
        own=np.zeros(count),
        rows=np.zeros((count, n)),
        diagonal=np.zeros((count, n)),
        noise=np.array([each.noise(rows.dtype) for each in entries]),
    )
    if entries[0].kernel.kind == "linear":
        # Rows of the Gram matrix of centred features sum to zero.
        moments.rows, moments.diagonal = -rows.norms, rows.norms
    else:
        moments.diagonal += np.array([each.diagonal for each in entries])[:, None]
    if anchors is not None:
        shapes = {index: (len(anchors), *size) for index, size in enumerate(sizes)}
        moments.h = {index: np.zeros(shape, dtype=rows.dtype) for index, shape in shapes.items()}
        moments.own_h = np.zeros((count, len(anchors)))
    return moments


def _product(left: Any, right: Any, out: Any, index: int) -> None:
    if isinstance(out, np.ndarray):
        np.matmul(left, right.T, out=out[index])
    else:
        out[index] = left @ right.T


def _kernels(
    rows: Rows, entries: Sequence[Entries], grams: Any, i: tuple[int, int], j: tuple[int, int]
) -> Any:
    device = rows.device
    out = device.empty(grams.shape, rows.dtype)
    for index, each in enumerate(entries):
        left = device.put(rows.norms[index, slice(*i), None].astype(rows.dtype))
        right = device.put(rows.norms[index, None, slice(*j)].astype(rows.dtype))
        out[index] = each.tile(grams[index], left, right, device.xp)
    return out


def _contract(moments: Moments, stack: Any, pairs: Sequence[Pair], weight: int, device: Device) -> None:
    flat = device.xp.reshape(stack, (stack.shape[0], -1))
    for index, (a, b) in enumerate(pairs):
        moments.cross[index] += weight * device.get(flat[a] @ flat[b].T).astype(np.float64)
    for site in range(len(moments.own)):
        moments.own[site] += weight * _square(stack[site])


def _square(matrix: Any) -> float:
    # A dot product of numpy adds up equal numbers with errors of one sign; einsum does so in short pieces.
    if isinstance(matrix, np.ndarray):
        return float(np.einsum("ij,ij->", matrix, matrix))
    flat = matrix.reshape(-1)
    return float(flat @ flat)


def _row_sums(moments: Moments, stack: Any, i: tuple[int, int], j: tuple[int, int], device: Device) -> None:
    xp = device.xp
    moments.rows[:, slice(*i)] += device.get(xp.sum(stack, axis=2))
    if i != j:
        moments.rows[:, slice(*j)] += device.get(xp.sum(stack, axis=1))


def _row_products(
    moments: Moments,
    stack: Any,
    pairs: Sequence[Pair],
    anchors: NDArray[np.int64],
    i: tuple[int, int],
    j: tuple[int, int],
    device: Device,
) -> None:
    xp = device.xp
    for bounds, axes in ((i, (1, 0, 2)), (j, (2, 0, 1)))[: 1 if i == j else 2]:
        part, chosen = inside(anchors, *bounds)
        if not len(chosen):
            continue
        # (sample, site, other sample), so that the sums are matrix products.
        view = xp.permute_dims(stack, axes)
        if len(chosen) < bounds[1] - bounds[0]:
            view = xp.take(view, device.put(chosen), axis=0)
        elif axes[0] == 2:
            view = _solid(view)
        for index, (a, b) in enumerate(pairs):
            products = view[:, a] @ xp.permute_dims(view[:, b], (0, 2, 1))
            moments.h[index][part] += device.get(products)
        moments.own_h[:, part] += device.get(xp.sum(view * view, axis=2)).T


def inside(anchors: NDArray[np.int64], start: int, stop: int) -> tuple[slice, NDArray[np.int64]]:
    """Which of the ascending anchors are among rows start..stop, and at which of these rows they are."""
    first, last = (int(place) for place in np.searchsorted(anchors, (start, stop)))
    return slice(first, last), anchors[first:last] - start


def _solid(array: Any) -> Any:
    return np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array.contiguous()
