"""Values of sums over pairs, and their standard errors by leaving out one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.forms import Form, Kernel, leave_one_out, ratio, similarity
from featlens.comparison.rows import Rows
from featlens.comparison.tiles import Moments, Pair, kernel_tile

__all__ = ["ROUNDING", "Sums", "mixed_products", "finish", "standard_errors", "values"]

Floats = NDArray[np.float64]

ROUNDING = {"float64": 1e-12, "float32": 2e-5}
"""A self-similarity below this fraction of its uncorrected value is rounding error, not a signal.

Rounding of a product is about 1e-7 in float32, but rows that differ by a permutation all err alike: one-hot
rows come to 1e-5.
"""


class Sums:
    """What the formulas need of all sites of one kernel."""

    def __init__(self, form: Form, moments: Moments, dtype: str) -> None:
        self.form, self.moments, self.dtype = form, moments, dtype
        biased = form.formula == "biased"
        self.rows = moments.rows + moments.diagonal if biased else moments.rows
        self.own = moments.diagonal if biased else np.zeros_like(moments.diagonal)
        self.totals: Floats = self.rows.sum(axis=1)
        self.n = self.rows.shape[1]

    def product(self, a: slice, b: slice) -> tuple[Floats, Floats]:
        """(A, B) sums over the samples of products of row sums, and of diagonals."""
        return self.rows[a] @ self.rows[b].T, self.own[a] @ self.own[b].T

    def self_similarity(self) -> Floats:
        """(H,) self terms; 0 where there is nothing but rounding."""
        squares, diagonals = (np.einsum("hn,hn->h", x, x) for x in (self.rows, self.own))
        totals = self.totals * self.totals
        found = similarity(self.form.formula, self.n, self.moments.own, totals, squares, diagonals)
        # Samples at equal distances from one another have no self-similarity but rounding errors.
        scale = self.moments.own + diagonals + totals / self.n**2
        if self.form.formula == "biased":
            least = ROUNDING[self.dtype] * scale / self.n**2
        else:
            least = ROUNDING[self.dtype] * scale / (self.n * max(self.n - 3, 1))
        return np.where(np.asarray(found) > least, found, 0.0)


def values(sums: Sums, index: int, pair: Pair) -> Floats:
    """(A, B) values of one pair of groups."""
    a, b = pair
    products, diagonals = sums.product(a, b)
    totals = sums.totals[a, None] * sums.totals[None, b]
    cross = similarity(sums.form.formula, sums.n, sums.moments.cross[index], totals, products, diagonals)
    own = sums.self_similarity()
    return np.asarray(finish(sums.form, ratio(cross, own[a, None], own[None, b])))


def finish(form: Form, value: Any) -> Any:
    """The measure from the ratio."""
    return np.sqrt(np.maximum(value, 0)) if form.root else value


def mixed_products(rows: Rows, sums: Sums, widths: Sequence[float]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Block by block: rows as a slice, and (H, rows, H') K~_h s_g there, for row sums s of every site g."""
    vectors = rows.device.put(np.ascontiguousarray(sums.rows.T).astype(rows.dtype))
    bounds = [(start, min(start + rows.size, rows.n)) for start in rows.starts]
    device, sites = rows.device, range(len(rows.handles))
    linear = sums.form.kernel.kind == "linear"
    # With the linear kernel K s = X (X's).
    inner = [
        sum(rows.block(index, number).T @ vectors[slice(*bound)] for number, bound in enumerate(bounds))
        for index in (sites if linear else ())
    ]
    for number, (start, stop) in enumerate(bounds):
        part = slice(start, stop)
        rows.hold(number)
        out = np.empty((len(sites), stop - start, len(sites)), dtype=rows.dtype)
        for index in sites:
            if linear:
                whole = device.get(rows.block(index, number) @ inner[index])
                out[index] = whole - sums.moments.diagonal[index, part, None] * sums.rows.T[part]
            else:
                out[index] = device.get(_times(rows, sums.form.kernel, widths[index], index, number, vectors))
        yield part, out


def _times(rows: Rows, kernel: Kernel, width: float, index: int, number: int, vectors: Any) -> Any:
    """Rows of one block of a kernel matrix with zero diagonal, times vectors (n, V)."""
    xp, device, norms = rows.device.xp, rows.device, rows.norms[index]
    start, stop = rows.starts[number], min(rows.starts[number] + rows.size, rows.n)
    left = device.put(norms[start:stop, None].astype(rows.dtype))
    total: Any = 0
    for second, low in enumerate(rows.starts):
        high = min(low + rows.size, rows.n)
        gram = rows.block(index, number) @ rows.block(index, second).T
        right = device.put(norms[None, low:high].astype(rows.dtype))
        tile = kernel_tile(kernel, gram, left, right, width, xp)
        if second == number:
            tile[xp.arange(stop - start), xp.arange(stop - start)] = 0
        total = total + tile @ vectors[low:high]
    return total


def standard_errors(rows: Rows, sums: Sums, pairs: Sequence[Pair], widths: Sequence[float]) -> list[Floats]:
    """For each pair of groups (A, B): jackknife standard errors of the measure (Efron and Stein 1981).

    Parameters
    ----------
    rows, sums
        Features, and sums with ``h``.
    pairs
        Groups of sites, those of the sums.
    widths
        Bandwidths by site.
    """
    form, n = sums.form, sums.n
    spreads = [_Spread((a.stop - a.start, b.stop - b.start)) for a, b in pairs]
    for part, mixed in mixed_products(rows, sums, widths):
        own = _left_out_of_itself(sums, part, mixed)
        for index, (a, b) in enumerate(pairs):
            step = max(1, int(4e6 // ((a.stop - a.start) * (b.stop - b.start))))
            for low in range(part.start, part.stop, step):
                piece = slice(low, min(low + step, part.stop))
                inside = slice(piece.start - part.start, piece.stop - part.start)
                cross = _left_out(sums, index, (a, b), piece, mixed[:, inside])
                with np.errstate(invalid="ignore"):
                    value = ratio(cross, own[inside, a, None], own[inside, None, b])
                spreads[index].add(np.asarray(finish(form, value)))
    return [np.sqrt((n - 1) / n * spread.squares) for spread in spreads]


class _Spread:
    """Sum of squares about the mean, added to block by block: the differences are tiny."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count, self.mean, self.squares = 0, np.zeros(shape), np.zeros(shape)

    def add(self, block: Floats) -> None:
        """Take in (rows, ...) values."""
        size, mean = len(block), block.mean(axis=0)
        total = self.count + size
        self.squares += ((block - mean) ** 2).sum(axis=0) + (
            mean - self.mean
        ) ** 2 * self.count * size / total
        self.mean += (mean - self.mean) * size / total
        self.count = total


def _left_out(sums: Sums, index: int, pair: Pair, part: slice, mixed: NDArray[Any]) -> Floats:
    """(rows, A, B) cross terms without each sample of a part."""
    a, b = pair
    products, diagonals = sums.product(a, b)
    rows, own = sums.rows[:, part].T, sums.own[:, part].T
    found = leave_one_out(
        sums.form.formula,
        sums.n,
        sums.moments.cross[index][None],
        (sums.totals[None, a, None], sums.totals[None, None, b]),
        products[None],
        diagonals[None],
        (rows[:, a, None], rows[:, None, b]),
        (own[:, a, None], own[:, None, b]),
        sums.moments.h[index][part],
        mixed[a, :, b].transpose(1, 0, 2) + mixed[b, :, a].transpose(1, 2, 0),
    )
    return np.asarray(found)


def _left_out_of_itself(sums: Sums, part: slice, mixed: NDArray[Any]) -> Floats:
    """(rows, H) self terms without each sample of a part."""
    products, diagonals = (np.einsum("hn,hn->h", x, x) for x in (sums.rows, sums.own))
    rows, own = sums.rows[:, part].T, sums.own[:, part].T
    found = leave_one_out(
        sums.form.formula,
        sums.n,
        sums.moments.own[None],
        (sums.totals[None], sums.totals[None]),
        products[None],
        diagonals[None],
        (rows, rows),
        (own, own),
        sums.moments.own_h[:, part].T,
        2 * np.einsum("hph->ph", mixed),
    )
    return np.asarray(found)
