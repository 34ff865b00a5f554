"""Linear kernels in feature space: one pass over the rows, whatever their number.

With z = x - m and w = y - m' for provisional means m and m' (of the first rows), delta and eps the means of z
and w, p = |z|^2 and q = |w|^2, everything that CKA needs follows from sums over single rows that are taken on
the way:

    C0 = sum z w',  sum z,  sum p,  sum p q,  sum p w,  sum q z.

Centred, with k = |z - delta|^2 and l = |w - eps|^2:

    X'Y = C0 - n delta eps',   sum k = sum p - n |delta|^2,
    sum k l = sum p q - 2 eps . sum p w - 2 delta . sum q z + 4 delta' C0 eps
              + |eps|^2 sum p + |delta|^2 sum q - 3 n |delta|^2 |eps|^2,
    X'l = sum q z - 2 C0 eps + n |eps|^2 delta - delta sum l.

Products of blocks are made in the type of the features, and added up in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.device import Device
from featlens.comparison.forms import Formula, leave_one_out, ratio, similarity
from featlens.comparison.jackknife import ROUNDING, VANISHED
from featlens.comparison.request import Handle
from featlens.comparison.rows import gather, require_finite, squared_norms
from featlens.comparison.tiles import Pair

__all__ = ["Streamed", "stream"]

Floats = NDArray[np.float64]
ROWS = 2048
"""Rows of a block."""


@dataclass(frozen=True)
class Streamed:
    """Values and standard errors of one pair of groups."""

    value: Floats
    error: Floats
    """Jackknife standard errors, NaN if they were not asked for."""
    share: float = 1.0
    """Smallest share of a self-similarity in the terms it is the difference of."""


@dataclass
class _Site:
    """Sums of one site."""

    handle: Handle
    origin: NDArray[Any]
    scale: float
    total: Floats
    squares: float = 0.0


def stream(
    handles: Sequence[Handle],
    pair: Pair,
    formulas: Sequence[Formula],
    n: int,
    dtype: str,
    device: Device,
    anchors: NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Streamed]:
    """CKA of all pairs of two groups of sites in one pass over the rows.

    Parameters
    ----------
    handles, pair
        Sites, and the slices of them that make both groups.
    formulas
        Estimators.
    n
        Number of samples.
    dtype
        Of the products of blocks.
    device
        Where they are made.
    anchors
        Samples that are left out in turn for the standard errors; none if None.
    progress
        Called with (rows done, rows).
    """
    sums = _Sums(handles, pair, n, dtype, device)
    # What overflows is found at the end, by its share.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, n, ROWS):
            stop = min(start + ROWS, n)
            sums.add(start, stop)
            if progress is not None:
                progress(stop, n)
        return [sums.finish(formula, anchors) for formula in formulas]


class _Sums:
    """Sums over the rows seen so far; the right side as one wide matrix, in the order of its sites."""

    def __init__(self, handles: Sequence[Handle], pair: Pair, n: int, dtype: str, device: Device) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self.sites = [_first_rows(handle, n) for handle in handles]
        self.left, self.right = (list(range(*group.indices(len(handles)))) for group in pair)
        widths = [handle.width for handle in handles]
        wide = sum(widths[b] for b in self.right)
        self.starts = np.cumsum([0, *(widths[b] for b in self.right)])[:-1]
        self.cross = {a: np.zeros((widths[a], wide)) for a in self.left}
        self.own = {a: np.zeros((widths[a], widths[a])) for a in (*self.left, *self.right)}
        self.squares = np.zeros((len(handles), len(handles)))
        self.weighted = [np.zeros((len(handles), width)) for width in widths]
        """By site: (sites, width) sums of its rows times the squared norms of every site."""

    def add(self, start: int, stop: int) -> None:
        """Take in the rows start..stop."""
        device, blocks = self.device, []
        norms = np.empty((len(self.sites), stop - start))
        for index, site in enumerate(self.sites):
            block = self.shifted(site, start, stop)
            norms[index] = squared_norms(block)
            site.total += block.sum(axis=0, dtype=np.float64)
            blocks.append(device.put(block))
        self.squares += norms @ norms.T
        narrow = device.put(norms.astype(self.dtype))
        right = device.xp.concat([blocks[b] for b in self.right], axis=1)
        for index, block in enumerate(blocks):
            self.weighted[index] += device.get(narrow @ block)
            self.sites[index].squares += float(norms[index].sum())
        for a, total in self.own.items():
            total += device.get(blocks[a].T @ blocks[a])
        for a, total in self.cross.items():
            total += device.get(blocks[a].T @ right)

    def shifted(self, site: _Site, start: int, stop: int) -> NDArray[Any]:
        """Rows about the provisional mean, scaled."""
        raw = np.asarray(site.handle.read(start, stop))
        require_finite(raw, site.handle.label, start)
        return self.placed(site, raw).astype(self.dtype, copy=False)

    def placed(self, site: _Site, raw: NDArray[Any]) -> NDArray[Any]:
        """Rows about the provisional mean, scaled, in the wider of their type and that of the products."""
        raw = raw.astype(np.result_type(raw, self.dtype), copy=False)
        return np.asarray((raw - site.origin) / raw.dtype.type(site.scale))

    def finish(self, formula: Formula, anchors: NDArray[np.int64] | None) -> Streamed:
        """Values, and standard errors from the samples in ``anchors``."""
        centre = _Centre(self)
        own = np.array([centre.own(formula, index) for index in range(len(self.sites))])
        cross = np.stack([centre.row(a).similarity(formula, self.n) for a in self.left])
        value = ratio(cross, own[self.left][:, None], own[self.right][None, :])
        if anchors is None or self.n < 6:
            return Streamed(value, np.full(value.shape, np.nan), centre.share)
        return Streamed(value, centre.errors(formula, anchors), centre.share)


def _first_rows(handle: Handle, n: int) -> _Site:
    """Provisional mean and scale of a site."""
    first = np.asarray(handle.read(0, min(n, 1024)))
    require_finite(first, handle.label)
    one = first[0].astype(np.float64)
    origin = (one + (first - one).mean(axis=0)).astype(first.dtype)
    largest, start = float(np.abs(first - origin).max()), len(first)
    # Rows that are all equal say nothing of the scale.
    while largest == 0 and start < n:
        later = np.asarray(handle.read(start, min(start + 1024, n)))
        require_finite(later, handle.label, start)
        largest, start = float(np.abs(later - origin).max()), start + len(later)
    return _Site(handle, origin, largest if largest > 0 else 1.0, np.zeros(handle.width))


@dataclass(frozen=True)
class _Row:
    """Centred sums of one site x with some sites y that lie side by side in one wide matrix."""

    product: Floats
    """(width of x, widths of y) X'Y."""
    full: Floats
    """(Y,) squared norms of X'Y."""
    both: Floats
    """(Y,) sum k l."""
    traces: tuple[Any, Floats]
    """sum k, and (Y,) sum l."""
    x_l: Floats
    """(width of x, Y) X'l."""
    y_k: Floats
    """(widths of y,) Y'k."""

    def similarity(self, formula: Formula, n: int) -> Floats:
        """HSIC with each y."""
        if formula == "biased":
            return self.full / (n - 1) ** 2
        products = self.traces[0] * self.traces[1]
        return np.asarray(similarity(formula, n, self.full - self.both, products, self.both))

    def left_out(
        self, formula: Formula, n: int, x: Floats, y: Floats, k: Floats, m: Floats, starts: NDArray[np.int64]
    ) -> Floats:
        """(anchors, Y) HSIC without each of the samples x and y (anchors, .), of squared norms k and m."""
        k = k[:, None]
        h = np.add.reduceat((x @ self.product) * y, starts, axis=1) - k * m
        cross, nothing = self.full - self.both, np.zeros((1, 1))
        if formula == "biased":
            # Row sums of whole centred Gram matrices are zero.
            zero = (nothing, nothing)
            return np.asarray(
                leave_one_out(formula, n, cross, zero, nothing, self.both, zero, (k, m), h, nothing)
            )
        mixed = 2 * k * m - x @ self.x_l - np.add.reduceat(y * self.y_k, starts, axis=1)
        totals = (-np.asarray(self.traces[0]), -self.traces[1])
        return np.asarray(
            leave_one_out(formula, n, cross, totals, self.both, 0.0, (-k, -m), (nothing, nothing), h, mixed)
        )


class _Centre:
    """Centred sums of all sites."""

    def __init__(self, sums: _Sums) -> None:
        self.sums, self.n = sums, sums.n
        self.mean = [site.total / sums.n for site in sums.sites]
        self.offset = np.array([float(mean @ mean) for mean in self.mean])
        self.squares = np.array([site.squares for site in sums.sites])
        self.trace = self.squares - sums.n * self.offset
        self.share = 1.0

    def row(self, a: int, own: bool = False) -> _Row:
        """Sums of a site with all of the right side, or with itself."""
        sums, n = self.sums, self.n
        others = [a] if own else sums.right
        starts = np.zeros(1, dtype=np.int64) if own else sums.starts
        raw = sums.own[a] if own else sums.cross[a]
        delta, eps = self.mean[a], np.concatenate([self.mean[b] for b in others])
        product = raw - n * np.outer(delta, eps)
        q_z = sums.weighted[a][others]
        p_w = np.concatenate([sums.weighted[b][a] for b in others])
        inner = raw * eps
        c0_eps = np.add.reduceat(inner, starts, axis=1)
        far, near = self.offset[others], self.offset[a]
        both = (
            sums.squares[a, others]
            - 2 * np.add.reduceat(eps * p_w, starts)
            - 2 * q_z @ delta
            + 4 * delta @ c0_eps
            + far * self.squares[a]
            + near * self.squares[others]
            - 3 * n * near * far
        )
        return _Row(
            product,
            np.add.reduceat(np.einsum("ij,ij->j", product, product), starts),
            both,
            (self.trace[a], self.trace[others]),
            q_z.T - 2 * c0_eps + np.outer(delta, n * far - self.trace[others]),
            p_w - 2 * (delta @ raw) + eps * (n * near - self.trace[a]),
        )

    def own(self, formula: Formula, index: int) -> float:
        """Self term; 0 where there is nothing but rounding."""
        row = self.row(index, own=True)
        found, full = float(row.similarity(formula, self.n)[0]), float(row.full[0])
        if not np.isfinite(found) or (not full and self.trace[index] > 0):
            # The first rows, which set the scale, were out of all proportion to the rest.
            self.share = 0.0
            return 0.0
        if formula == "biased" or not full:
            return max(found, 0.0)
        share = found * self.n * (self.n - 3) / full
        self.share = min(self.share, share)
        return found if share > ROUNDING[self.sums.dtype] else 0.0

    def errors(self, formula: Formula, anchors: NDArray[np.int64]) -> Floats:
        """(A, B) jackknife standard errors from the samples in ``anchors``."""
        sums, n = self.sums, self.n
        rows = [
            self._anchor_rows(site, mean, anchors) for site, mean in zip(sums.sites, self.mean, strict=True)
        ]
        norms = np.stack([np.einsum("ij,ij->i", x, x) for x in rows], axis=1)
        alone = np.zeros(1, dtype=np.int64)
        own = np.stack(
            [
                self.row(i, own=True).left_out(formula, n, x, x, norms[:, i], norms[:, [i]], alone)[:, 0]
                for i, x in enumerate(rows)
            ],
            axis=1,
        )
        least = [VANISHED * ROUNDING[sums.dtype] * self.own(formula, i) for i in range(len(rows))]
        own = np.where(own > least, own, 0.0)
        right, out = np.concatenate([rows[b] for b in sums.right], axis=1), []
        for a in sums.left:
            row = self.row(a)
            cross = row.left_out(formula, n, rows[a], right, norms[:, a], norms[:, sums.right], sums.starts)
            left_out = ratio(cross, own[:, [a]], own[:, sums.right])
            out.append(np.sqrt((n - 1) * np.mean((left_out - left_out.mean(axis=0)) ** 2, axis=0)))
        return np.stack(out)

    def _anchor_rows(self, site: _Site, mean: Floats, anchors: NDArray[np.int64]) -> Floats:
        return self.sums.placed(site, gather(site.handle, anchors)) - mean
