"""Linear algebra that several measures share: unit columns, principal components, narrower factors."""

from __future__ import annotations

import math
import numbers
from typing import Any

from featlens.errors import UsageError
from featlens.measures.arrays import Array, centred, namespace, rescaled

__all__ = [
    "TOLERANCE",
    "column_norms",
    "narrow",
    "number",
    "principal",
    "rank",
    "unit_columns",
]

TOLERANCE = 1e-6
"""Directions whose singular value is below this share of the largest are taken for rounding of float32."""
CONSTANT = 1e-13
"""A column that strays from its mean by less than this share of its largest entry is constant."""


def number(
    value: Any,
    option: str,
    measure: str,
    low: float,
    high: float = math.inf,
    closed: tuple[bool, bool] = (True, False),
) -> float:
    """The option as a float, or an error with the interval; ``closed`` says which of its ends belong."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
        inside = low <= found if closed[0] else low < found
        if inside and (found <= high if closed[1] else found < high):
            return found
    left, right = "[" if closed[0] else "(", "]" if closed[1] else ")"
    raise UsageError(
        f"{measure}: {option} must be in {left}{low:g}, {high:g}{right}, got {value!r}; choose a number there"
    )


def column_norms(x: Array, original: Array) -> Array:
    """Norm (d,) of each column of centred features; 0 where only rounding of the original is left."""
    xp = namespace(x)
    peak = xp.max(xp.abs(x), axis=0)
    constant = peak <= CONSTANT * xp.max(xp.abs(original), axis=0)
    safe = xp.where(constant, xp.ones_like(peak), peak)
    norms = safe * xp.sqrt(xp.sum((x / safe) ** 2, axis=0))
    return xp.where(constant, xp.zeros_like(norms), norms)


def unit_columns(x: Array, norms: Array) -> Array:
    """Columns divided by their norms; zero where the norm is."""
    xp = namespace(x)
    varies = norms > 0
    out = x / xp.where(varies, norms, xp.ones_like(norms))
    return xp.where(varies, out, xp.zeros_like(out))


def rank(values: Array, tolerance: float) -> int:
    """How many of the singular values, largest first, exceed that share of the first."""
    xp = namespace(values)
    return int(xp.sum(xp.astype(values > tolerance * values[0], xp.int64)))


def principal(x: Array, variance: float) -> Array:
    """Orthonormal basis (n, k) of the scores on the fewest principal components with that share of variance.

    Features (n, d) as they are, centred here. k is 0 for constant features.
    """
    x = rescaled(centred(x))
    basis, values, _ = namespace(x).linalg.svd(x, full_matrices=False)
    squares = [value * value for value in values.tolist()]
    # A share that is reached exactly must not be missed by a rounding error.
    wanted = variance * math.fsum(squares) * (1 - TOLERANCE**2)
    sofar, kept = 0.0, 0
    while sofar < wanted:
        sofar, kept = sofar + squares[kept], kept + 1
    return basis[:, :kept]


def narrow(x: Array) -> Array:
    """Features (n, min(n, d)) with the same inner products between samples."""
    return namespace(x).linalg.qr(x.T)[1].T if x.shape[1] > x.shape[0] else x
