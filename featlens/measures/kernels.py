"""Distances and kernels between the samples of one side, and the two ways of centring them.

Matrices are (n, n) float64. Their common scale is arbitrary: features are brought to the order of 1 by a
power of two, which rounds nothing, so that squares neither under- nor overflow.
"""

from __future__ import annotations

import math
from typing import Any

from featlens.measures.arrays import Array, centred, namespace, norm

__all__ = [
    "ROUNDING",
    "TIES",
    "cleared",
    "cosine_distances",
    "distances",
    "distinct",
    "doubly_centred",
    "identity",
    "median_distance",
    "ranks",
    "rbf",
    "sized",
    "squared_distances",
    "u_centred",
    "unit_rows",
    "upper",
]

ROUNDING = 1e-12
"""What centring leaves of a matrix, as a fraction of its norm, below which it is rounding error."""
TIES = 1e-11
"""Distances that differ by no more than this fraction are equal: sums in other orders round otherwise."""
NEAR = 1e-3
"""Squared distances below this fraction of both squared norms have lost three digits, and are taken anew."""
BLOCK = 1 << 22
"""Numbers in memory at once when differences are formed one by one."""


def identity(x: Array) -> Array:
    """Identity matrix (n, n) on the device of x (n, ...)."""
    from array_api_compat import device

    xp = namespace(x)
    return xp.eye(x.shape[0], dtype=xp.float64, device=device(x))


def sized(x: Array, like: Array | None = None) -> Array:
    """Features divided by the power of two that brings the largest entry of ``like`` (or x) to 0.5..1."""
    xp = namespace(x)
    largest = float(xp.max(xp.abs(x if like is None else like)))
    if not 0 < largest < math.inf:
        return x
    exponent = math.frexp(largest)[1]
    # In two steps: 2^1074 is no float64.
    half = exponent // 2
    return x * 2.0**-half * 2.0 ** (half - exponent)


def unit_rows(x: Array) -> Array:
    """Rows divided by their norms; NaN everywhere if a row is zero, which has no direction."""
    xp = namespace(x)
    largest = xp.max(xp.abs(x), axis=1, keepdims=True)
    if not bool(xp.all(largest > 0)):
        return xp.full_like(x, math.nan)
    x = x / largest
    return x / xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))


def distinct(x: Array) -> tuple[Array, Array]:
    """Positions (u,) of one of each set of equal rows of x (n, d), and which of them each row is (n,)."""
    from array_api_compat import device

    xp = namespace(x)
    mixing = xp.sin(xp.arange(1, x.shape[1] + 1, dtype=xp.float64, device=device(x)))
    order = xp.argsort(xp.sum(x * mixing, axis=1))
    ordered = xp.take(x, order, axis=0)
    begins: Any = xp.ones_like(order, dtype=xp.bool)
    begins[1:] = xp.any(ordered[1:] != ordered[:-1], axis=1)
    group = xp.zeros_like(order)
    group[order] = xp.cumsum(xp.astype(begins, order.dtype), 0) - 1
    return order[begins], group


def squared_distances(x: Array) -> Array:
    """Squared Euclidean distances (n, n) of the rows of x (n, d), up to a common power of four.

    Symmetric, with zeros on the diagonal and exact zeros for equal rows. From the norms and products of
    centred features; pairs so close that these cancel are taken from the differences of the features as they
    came, so that every distance has a relative error of about 1e-13.
    """
    xp = namespace(x)
    first, group = distinct(x)
    if first.shape[0] == x.shape[0]:
        return _squared_distances(x)
    # Of equal rows all pairs are close, and would be taken one by one.
    found = _squared_distances(xp.take(x, first, axis=0))
    return xp.take(xp.take(found, group, axis=0), group, axis=1)


def _squared_distances(x: Array) -> Array:
    xp = namespace(x)
    spread = centred(x)
    x, spread = sized(x, like=spread), sized(spread)
    squares = xp.sum(spread * spread, axis=1)
    both = squares[:, None] + squares[None, :]
    found = both - 2 * xp.matmul(spread, spread.T)
    above = xp.triu(xp.ones_like(found), k=1)
    found = found * above
    rows, columns = xp.nonzero((found <= NEAR * both) & (above > 0))
    step = max(1, BLOCK // x.shape[1])
    for start in range(0, rows.shape[0], step):
        i, j = rows[start : start + step], columns[start : start + step]
        apart = xp.take(x, i, axis=0) - xp.take(x, j, axis=0)
        found[i, j] = xp.sum(apart * apart, axis=1)
    return found + found.T


def distances(x: Array) -> Array:
    """Euclidean distances (n, n) of the rows of x (n, d), up to a common power of two."""
    return namespace(x).sqrt(squared_distances(x))


def cosine_distances(x: Array) -> Array:
    """1 - cosine (n, n) of the rows of x (n, d), up to a power of four; NaN everywhere if a row is zero."""
    # Half the squared distance of unit vectors: no digits are lost where the cosine is close to 1.
    return squared_distances(unit_rows(x)) / 2


def upper(matrix: Array) -> Array:
    """Entries above the diagonal, (n (n - 1) / 2,), row by row."""
    xp = namespace(matrix)
    above = xp.triu(xp.ones_like(matrix), k=1) > 0
    return matrix[above]


def median_distance(squared: Array) -> float:
    """Median of the non-zero distances, from squared ones (n, n); 0 if there is none."""
    xp = namespace(squared)
    values = upper(squared)
    values = xp.sort(values[values > 0])
    count = values.shape[0]
    if not count:
        return 0.0
    return (math.sqrt(float(values[(count - 1) // 2])) + math.sqrt(float(values[count // 2]))) / 2


def rbf(x: Array, bandwidth: float = 1.0) -> Array:
    """Gaussian kernel minus 1, (n, n): exp(-d^2 / (2 s^2)) - 1 with s = bandwidth x median non-zero distance.

    Centring takes any constant away again; without the 1 a large bandwidth costs no digits. Zeros if all rows
    are equal.
    """
    xp = namespace(x)
    squared = squared_distances(x)
    width = bandwidth * median_distance(squared)
    return xp.expm1(-(squared / width / width) / 2) if width > 0 else squared


def cleared(matrix: Array, before: Array) -> Array:
    """The matrix, or zeros where it is only what rounding left of ``before``."""
    return matrix if norm(matrix) > ROUNDING * norm(before) else matrix * 0


def u_centred(k: Array) -> Array:
    """U-centred matrix (n, n) of Szekely and Rizzo (2014, definition 2), with zeros on the diagonal.

    The inner product of two of them is n (n - 3) times the unbiased HSIC of Song et al. (2012, equation 5),
    or the unbiased squared distance covariance. ``k`` is symmetric, n >= 4; its diagonal is not looked at.
    """
    xp = namespace(k)
    n = k.shape[0]
    apart = 1 - identity(k)
    k = xp.where(apart > 0, k, xp.zeros_like(k))
    sums = xp.sum(k, axis=1, keepdims=True) / (n - 2)
    total = xp.sum(sums) / (n - 1)
    return cleared((k - sums - sums.T + total) * apart, k)


def doubly_centred(k: Array) -> Array:
    """Symmetric matrix (n, n) whose rows and columns sum to 0: H k H."""
    xp = namespace(k)
    means = xp.mean(k, axis=1, keepdims=True)
    return cleared(k - means - means.T + xp.mean(means), k)


def ranks(values: Array) -> Array:
    """Ranks (m,) from 0 of values (m,) not below 0; equal ones, up to rounding, share their mean rank."""
    xp = namespace(values)
    count = values.shape[0]
    order = xp.argsort(values)
    ordered = xp.take(values, order, axis=0)
    begins: Any = xp.ones_like(ordered, dtype=xp.bool)
    begins[1:] = ordered[1:] - ordered[:-1] > TIES * ordered[1:]
    first = xp.nonzero(begins)[0]
    last = xp.concat([first[1:], xp.full_like(first[:1], count)]) - 1
    group = xp.cumsum(xp.astype(begins, xp.int64), 0) - 1
    shared = xp.take(xp.astype(first + last, xp.float64) / 2, group, axis=0)
    out = xp.zeros_like(shared)
    out[order] = shared
    return out
