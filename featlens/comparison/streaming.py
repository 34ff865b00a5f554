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
from featlens.comparison.jackknife import ROUNDING
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
    for start in range(0, n, ROWS):
        stop = min(start + ROWS, n)
        sums.add(start, stop)
        if progress is not None:
            progress(stop, n)
    return [sums.finish(formula, anchors) for formula in formulas]


class _Sums:
    def __init__(self, handles: Sequence[Handle], pair: Pair, n: int, dtype: str, device: Device) -> None:
        self.pair, self.n, self.dtype, self.device = pair, n, dtype, device
        self.sites = [_first_rows(handle, n) for handle in handles]
        self.left, self.right = (list(range(*group.indices(len(handles)))) for group in pair)
        widths = [handle.width for handle in handles]
        self.cross = {(a, b): np.zeros((widths[a], widths[b])) for a in self.left for b in self.right} | {
            (a, a): np.zeros((widths[a], widths[a])) for a in (*self.left, *self.right)
        }
        count = len(handles)
        self.squares = np.zeros((count, count))
        self.weighted = [np.zeros((count, width)) for width in widths]
        """By site: (other sites, width) sums of its rows times the squared norms of the other site."""

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
        for index, block in enumerate(blocks):
            self.weighted[index] += device.get(narrow @ block)
            self.sites[index].squares += float(norms[index].sum())
        for (a, b), total in self.cross.items():
            total += device.get(blocks[a].T @ blocks[b])

    def shifted(self, site: _Site, start: int, stop: int) -> NDArray[Any]:
        """Rows about the provisional mean, scaled."""
        raw = np.asarray(site.handle.read(start, stop))
        require_finite(raw, site.handle.label, start)
        raw = raw.astype(np.result_type(raw, self.dtype), copy=False)
        block = (raw - site.origin) / raw.dtype.type(site.scale)
        return np.asarray(block, dtype=self.dtype)

    def finish(self, formula: Formula, anchors: NDArray[np.int64] | None) -> Streamed:
        """Values, and standard errors from the samples in ``anchors``."""
        centre = _Centre(self)
        a, b = self.left, self.right
        own = np.zeros(len(self.sites))
        for index in {*a, *b}:
            own[index] = centre.similarity(formula, index, index)
        cross = np.array([[centre.similarity(formula, i, j) for j in b] for i in a])
        value = ratio(cross, own[a][:, None], own[b][None, :])
        if anchors is None or self.n < 6:
            return Streamed(value, np.full(value.shape, np.nan))
        return Streamed(value, centre.errors(formula, anchors))


def _first_rows(handle: Handle, n: int) -> _Site:
    """Provisional mean and scale of a site."""
    first = np.asarray(handle.read(0, min(n, 1024)))
    require_finite(first, handle.label)
    start = first[0].astype(np.float64)
    origin = (start + (first - start).mean(axis=0)).astype(first.dtype)
    largest = float(np.abs(first - origin).max())
    return _Site(handle, origin, largest if largest > 0 else 1.0, np.zeros(handle.width))


class _Centre:
    """Centred sums of all sites."""

    def __init__(self, sums: _Sums) -> None:
        self.sums, self.n = sums, sums.n
        self.mean = [site.total / sums.n for site in sums.sites]
        self.offset = [float(mean @ mean) for mean in self.mean]
        self.trace = [
            site.squares - sums.n * offset for site, offset in zip(sums.sites, self.offset, strict=True)
        ]
        self._products: dict[tuple[int, int], Floats] = {}

    def product(self, a: int, b: int) -> Floats:
        """X'Y of two sites."""
        if (a, b) not in self._products:
            raw = self.sums.cross[a, b]
            raw = raw - self.n * np.outer(self.mean[a], self.mean[b])
            self._products = {(a, b): raw}
        return self._products[a, b]

    def norms(self, a: int, b: int) -> float:
        """Sum over the samples of the product of squared norms."""
        sums, eps, delta = self.sums, self.mean[b], self.mean[a]
        inner = float(delta @ sums.cross[a, b] @ eps)
        return float(
            sums.squares[a, b]
            - 2 * eps @ sums.weighted[b][a]
            - 2 * delta @ sums.weighted[a][b]
            + 4 * inner
            + self.offset[b] * sums.sites[a].squares
            + self.offset[a] * sums.sites[b].squares
            - 3 * self.n * self.offset[a] * self.offset[b]
        )

    def similarity(self, formula: Formula, a: int, b: int) -> float:
        """HSIC of two sites; 0 for a site with itself where there is nothing but rounding."""
        full = float(np.einsum("ij,ij->", self.product(a, b), self.product(a, b)))
        if formula == "biased":
            found = full / (self.n - 1) ** 2
            return found if a != b or full > 0 else 0.0
        both, traces = self.norms(a, b), self.trace[a] * self.trace[b]
        found = float(similarity(formula, self.n, full - both, traces, both))
        scale = full / (self.n * (self.n - 3))
        return 0.0 if a == b and found <= ROUNDING[self.sums.dtype] * scale else found

    def weighted(self, a: int, b: int) -> Floats:
        """X'l: centred rows of a times the squared norms of b, summed."""
        sums = self.sums
        raw = sums.cross[a, b] if (a, b) in sums.cross else sums.cross[b, a].T
        return np.asarray(
            sums.weighted[a][b]
            - 2 * raw @ self.mean[b]
            + self.n * self.offset[b] * self.mean[a]
            - self.mean[a] * self.trace[b]
        )

    def errors(self, formula: Formula, anchors: NDArray[np.int64]) -> Floats:
        """(A, B) jackknife standard errors from the samples in ``anchors``."""
        sums, n = self.sums, self.n
        rows = [
            self._anchor_rows(site, mean, anchors) for site, mean in zip(sums.sites, self.mean, strict=True)
        ]
        norms = [np.einsum("ij,ij->i", x, x) for x in rows]
        own = {i: self._left_out(formula, i, i, rows, norms) for i in {*sums.left, *sums.right}}
        out = np.empty((len(sums.left), len(sums.right)))
        for i, a in enumerate(sums.left):
            for j, b in enumerate(sums.right):
                left_out = ratio(self._left_out(formula, a, b, rows, norms), own[a], own[b])
                out[i, j] = np.sqrt((n - 1) * np.mean((left_out - left_out.mean()) ** 2))
        return out

    def _anchor_rows(self, site: _Site, mean: Floats, anchors: NDArray[np.int64]) -> Floats:
        raw = gather(site.handle, anchors)
        raw = raw.astype(np.result_type(raw, self.sums.dtype), copy=False)
        return np.asarray((raw - site.origin) / raw.dtype.type(site.scale) - mean, dtype=np.float64)

    def _left_out(
        self, formula: Formula, a: int, b: int, rows: Sequence[Floats], norms: Sequence[Floats]
    ) -> Floats:
        """HSIC without each of the anchors."""
        x, y, k, m = rows[a], rows[b], norms[a], norms[b]
        product, both = self.product(a, b), self.norms(a, b)
        h = np.einsum("ij,ij->i", x @ product, y) - k * m
        full = float(np.einsum("ij,ij->", product, product))
        if formula == "biased":
            zero = np.zeros(1)
            # Row sums of the whole Gram matrices are zero.
            found = leave_one_out(
                formula, self.n, full - both, (zero, zero), zero, both, (zero, zero), (k, m), h, zero
            )
        else:
            mixed = -(x @ self.weighted(a, b)) - (y @ self.weighted(b, a)) + 2 * k * m
            totals = (np.array(-self.trace[a]), np.array(-self.trace[b]))
            nothing = np.zeros(1)
            found = leave_one_out(
                formula, self.n, full - both, totals, both, 0.0, (-k, -m), (nothing, nothing), h, mixed
            )
        return np.asarray(found)
