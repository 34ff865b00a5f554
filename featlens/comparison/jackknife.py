"""Values of sums over pairs, and their standard errors by leaving out one sample at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.entries import Entries, entries_of
from featlens.comparison.forms import Form, leave_one_out, ratio, similarity
from featlens.comparison.rows import Rows
from featlens.comparison.tiles import Moments, Pair, inside

__all__ = ["ILL", "ROUNDING", "VANISHED", "Sums", "mixed_products", "finish", "standard_errors", "values"]

Floats = NDArray[np.float64]

ROUNDING = {"float64": 1e-12, "float32": 1e-4}
"""A self-similarity below this fraction of its uncorrected value is rounding error, not a signal.

Rounding of a product is about 1e-7 in float32, but in sums of a large and many small equal terms all errors
have the same sign: one-hot rows come to 3e-5.
"""


ILL = 3e-2
"""Where a self-similarity is a smaller share of its terms than this, float32 leaves no five digits of it."""


VANISHED = 1e-2
"""Where a self-similarity without one sample is below this times ROUNDING of what it was, nothing is left."""


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
        found, least = self._own()
        return np.where(found > least, found, 0.0)

    def share(self) -> float:
        """Smallest share of a self term in what it is the small difference of; 1 where none is."""
        found, least = self._own()
        shares = found[least > 0] / (least[least > 0] / ROUNDING[self.dtype])
        return float(min(1.0, shares.min())) if len(shares) else 1.0

    def _own(self) -> tuple[Floats, Floats]:
        """(H,) self terms, and what rounding may leave of them where there is none."""
        squares, diagonals = (np.einsum("hn,hn->h", x, x) for x in (self.rows, self.own))
        totals, n = self.totals * self.totals, self.n
        found = similarity(self.form.formula, n, self.moments.own, totals, squares, diagonals)
        # Samples at equal distances from one another have no self-similarity but rounding errors.
        scale = ROUNDING[self.dtype] * (self.moments.own + diagonals + totals / n**2)
        scale += n * (n - 1) * self.moments.noise**2
        count = n**2 if self.form.formula == "biased" else n * max(n - 3, 1)
        return np.asarray(found, dtype=np.float64), np.asarray(scale / count)


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


def mixed_products(
    rows: Rows, sums: Sums, widths: Sequence[float], anchors: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[Any]]]:
    """Products of kernels and row sums, block by block, for the anchors.

    Yields which anchors, which samples these are, and (H, anchors, H') K~_h s_g there for row sums s of every
    site g.
    """
    vectors = rows.device.put(np.ascontiguousarray(sums.rows.T).astype(rows.dtype))
    bounds = [(start, min(start + rows.size, rows.n)) for start in rows.starts]
    device, sites = rows.device, range(len(rows.handles))
    linear = sums.form.kernel.kind == "linear"
    # With the linear kernel K s = X (X's).
    inner = [
        sum(rows.block(index, number).T @ vectors[slice(*bound)] for number, bound in enumerate(bounds))
        for index in (sites if linear else ())
    ]
    for number, bound in enumerate(bounds):
        part, chosen = inside(anchors, *bound)
        if not len(chosen):
            continue
        rows.hold(number)
        samples = anchors[part]
        out = np.empty((len(sites), len(chosen), len(sites)), dtype=rows.dtype)
        for index in sites:
            block = rows.block(index, number)
            if len(chosen) < bound[1] - bound[0]:
                block = device.xp.take(block, device.put(chosen), axis=0)
            if linear:
                own = sums.moments.diagonal[index, samples, None] * sums.rows.T[samples]
                out[index] = device.get(block @ inner[index]) - own
            else:
                entries = entries_of(sums.form.kernel, widths[index], rows.norms[index])
                out[index] = device.get(_times(rows, entries, index, block, samples, vectors))
        yield part, samples, out


def _times(
    rows: Rows, entries: Entries, index: int, left: Any, samples: NDArray[np.int64], vectors: Any
) -> Any:
    """Some rows of a kernel matrix with zero diagonal, times vectors (n, V)."""
    xp, device, norms = rows.device.xp, rows.device, rows.norms[index]
    own = device.put(norms[samples, None].astype(rows.dtype))
    total: Any = 0
    for second, low in enumerate(rows.starts):
        high = min(low + rows.size, rows.n)
        gram = left @ rows.block(index, second).T
        right = device.put(norms[None, low:high].astype(rows.dtype))
        tile = entries.tile(gram, own, right, xp)
        here = np.flatnonzero((samples >= low) & (samples < high))
        tile[device.put(here), device.put(samples[here] - low)] = 0
        total = total + tile @ vectors[low:high]
    return total


def standard_errors(
    rows: Rows,
    sums: Sums,
    pairs: Sequence[Pair],
    widths: Sequence[float],
    anchors: NDArray[np.int64],
) -> list[Floats]:
    """For each pair of groups (A, B): jackknife standard errors of the measure (Efron and Stein 1981).

    Parameters
    ----------
    rows, sums
        Features, and sums with ``h``.
    pairs
        Groups of sites, those of the sums.
    widths
        Bandwidths by site.
    anchors
        Samples that are left out in turn, those of ``h``.
    """
    form, n = sums.form, sums.n
    spreads = [_Spread((a.stop - a.start, b.stop - b.start)) for a, b in pairs]
    least = VANISHED * ROUNDING[sums.dtype] * sums.self_similarity()
    for part, samples, mixed in mixed_products(rows, sums, widths, anchors):
        own = _left_out_of_itself(sums, part, samples, mixed)
        own = np.where(own > least, own, 0.0)
        for index, (a, b) in enumerate(pairs):
            step = max(1, int(4e6 // ((a.stop - a.start) * (b.stop - b.start))))
            for low in range(0, len(samples), step):
                some = slice(low, min(low + step, len(samples)))
                piece = slice(part.start + some.start, part.start + some.stop)
                cross = _left_out(sums, index, (a, b), piece, samples[some], mixed[:, some])
                with np.errstate(invalid="ignore"):
                    value = ratio(cross, own[some, a, None], own[some, None, b])
                spreads[index].add(np.asarray(finish(form, value)))
    return [np.sqrt((n - 1) / len(anchors) * spread.squares) for spread in spreads]


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


def _left_out(
    sums: Sums, index: int, pair: Pair, part: slice, samples: NDArray[np.int64], mixed: NDArray[Any]
) -> Floats:
    """(samples, A, B) cross terms without each of some samples, which are a part of the anchors."""
    a, b = pair
    products, diagonals = sums.product(a, b)
    rows, own = sums.rows[:, samples].T, sums.own[:, samples].T
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


def _left_out_of_itself(sums: Sums, part: slice, samples: NDArray[np.int64], mixed: NDArray[Any]) -> Floats:
    """(samples, H) self terms without each of some samples, which are a part of the anchors."""
    products, diagonals = (np.einsum("hn,hn->h", x, x) for x in (sums.rows, sums.own))
    rows, own = sums.rows[:, samples].T, sums.own[:, samples].T
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
