"""How far the geometry of features is known: the spread of its numbers over random halves of the samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from featlens.measures.arrays import Array, centred, checked, namespace
from featlens.measures.choices import whole
from featlens.measures.geometry import (
    EPSILON,
    GEOMETRY,
    directions_of,
    entropy_rank,
    fit_ratios,
    mean_cosine,
)
from featlens.measures.kernels import distinct, doubly_centred, sized, squared_distances

__all__ = ["LEAST", "half_sample_errors"]

LEAST = 8
"""Fewest samples whose halves have a geometry."""


def half_sample_errors(x: Array, resamples: int = 50, seed: int = 0) -> dict[str, float]:
    """Standard errors of :func:`featlens.measures.geometry`: the spread of its values over random halves.

    Halves are drawn without replacement, so that no sample is its own duplicate. For a mean the standard
    deviation over halves is the standard error of the whole. It knows nothing of bias: what grows or falls
    with n.

    Parameters
    ----------
    x
        (n, d), n >= 8.
    resamples
        Number of halves, at least 2.
    seed
        Seed of the halves.

    Returns
    -------
    dict
        By the names of the geometry; NaN where a half has no value.

    References
    ----------
    Politis and Romano (1994), Annals of Statistics 22, 2031-2050, with subsamples of n / 2 and the factor for
    drawing without replacement: 2 / n - 1 / n = 1 / n.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(400, 5))
    >>> 0 < half_sample_errors(x)["participation_ratio"] < 0.2
    True
    """
    whole(resamples, 2, "half_sample_errors", "resamples")
    halves = _Halves(checked(x, "x", LEAST, "half_sample_errors"))
    rng = np.random.default_rng(seed)
    n = int(x.shape[0])
    values = [halves.values(np.sort(rng.permutation(n)[: n // 2])) for _ in range(resamples)]
    return {name: float(np.std([value[name] for value in values], ddof=1)) for name in GEOMETRY}


class _Halves:
    """Geometry of parts of one set of features; what all parts have in common is computed once.

    Spectra are taken from Gram matrices, which is exact enough for a spread.
    """

    def __init__(self, x: Array) -> None:
        xp = namespace(x)
        self.raw, self.spread = sized(x), sized(centred(x))
        self.wide = x.shape[1] > x.shape[0] // 2
        if self.wide:
            self.raw, self.spread = (xp.matmul(side, side.T) for side in (self.raw, self.spread))
        self.x, self.directions = x, directions_of(x)
        first, group = distinct(x)
        self.apart, self.group = squared_distances(xp.take(x, first, axis=0)), group

    def values(self, rows: NDArray[np.int64]) -> dict[str, float]:
        """Geometry of some rows."""
        xp = namespace(self.x)
        index = xp.asarray(rows)
        own = self._eigenvalues(index, self.spread, centre=True)
        squares = float(xp.sum(own * own))
        part = xp.take(self.x, index, axis=0)
        kept = xp.unique_values(xp.take(self.group, index, axis=0))
        apart = xp.take(xp.take(self.apart, kept, axis=0), kept, axis=1)
        return {
            "effective_rank": entropy_rank(xp.sqrt(own)),
            "rankme": entropy_rank(xp.sqrt(self._eigenvalues(index, self.raw, centre=False)), EPSILON),
            "participation_ratio": float(xp.sum(own)) ** 2 / squares if squares > 0 else math.nan,
            "two_nn": fit_ratios(apart)[0] if kept.shape[0] >= 3 else math.nan,
            "anisotropy": mean_cosine(xp.take(self.directions, index, axis=0)),
            "dead_units": float(xp.mean(xp.astype(xp.max(part, axis=0) == xp.min(part, axis=0), xp.float64))),
        }

    def _eigenvalues(self, index: Array, side: Array, centre: bool) -> Array:
        xp = namespace(side)
        part = xp.take(side, index, axis=0)
        if self.wide:
            gram = xp.take(part, index, axis=1)
            gram = doubly_centred(gram) if centre else gram
        else:
            part = centred(part) if centre else part
            gram = xp.matmul(part.T, part)
        found = xp.linalg.eigvalsh(gram)
        return xp.where(found > 0, found, xp.zeros_like(found))
