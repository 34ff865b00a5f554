"""Frechet distance of Gaussians fitted to two feature sets, and its value for endless images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens.seeds import derive
from featlens_trainers.evaluation.sets import AT_ONCE, Features, block_rows, checked

__all__ = ["Extrapolation", "frechet_distance", "frechet_infinity"]

Array = NDArray[np.float64]


def frechet_distance(x: Features, y: Features) -> float:
    """Squared Frechet distance of Gaussians fitted to two feature sets (arXiv 1706.08500, equation 6).

    ``x`` (n, d), ``y`` (m, d), at least two rows each. Computed in float64; the trace of the matrix root
    comes from the eigenvalues of ``S_x^(1/2) S_y S_x^(1/2)``, which stays real for singular covariances.
    Biased upwards for small n: compare only values of equal n and m.

    >>> import numpy as np
    >>> x = np.array([[0.0], [2.0]])
    >>> frechet_distance(x, 3 * x + 1)  # (1 - 4)^2 + (root of 2 - root of 18)^2
    17.0
    """
    x, y = checked(x, y)
    root = _root(_covariance(x))
    other = _covariance(y)
    cross = np.linalg.eigvalsh(root @ other @ root)
    gap = x.mean(0) - y.mean(0)
    trace = np.trace(root @ root) + np.trace(other) - 2.0 * np.sqrt(np.clip(cross, 0.0, None)).sum()
    return float(gap @ gap + trace)


def _covariance(x: Array) -> Array:
    """Unbiased covariance (d, d); no centred copy is made of what is large."""
    if x.size <= AT_ONCE:
        return np.asarray(np.atleast_2d(np.cov(x, rowvar=False)))
    mean = x.mean(0)
    total = np.zeros((x.shape[1], x.shape[1]))
    step = block_rows(x.shape[1])
    for start in range(0, len(x), step):
        centred = x[start : start + step] - mean
        total += centred.T @ centred
    return np.asarray(total / (len(x) - 1))


def _root(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


@dataclass(frozen=True)
class Extrapolation:
    """Frechet distance for endless images on both sides, and the standard error of the line through it."""

    value: float
    error: float


def frechet_infinity(x: Features, y: Features, points: int = 15, seed: int = 0) -> Extrapolation:
    """Frechet distance with its bias extrapolated away (after arXiv 1911.07023, section 4).

    The bias falls as 1 / n and 1 / m. Distances of random parts of both sets, the same share f of each, lie
    therefore on a line in 1 / f, whose value at 0 is the distance for endless images. Shares are at least a
    half; parts are drawn without replacement. May be negative: it has an error, but no bias of first order.

    Parameters
    ----------
    x, y
        (n, d) and (m, d), at least eight rows each.
    points
        Number of parts, 3 or more.
    seed
        Seed of the parts.
    """
    x, y = checked(x, y, least=8)
    if points < 3:
        raise UsageError(f"frechet_infinity: expected at least 3 points, got {points}")
    inverse = np.linspace(1.0, 2.0, points)
    numbers = np.random.default_rng(derive(seed, "frechet infinity"))
    values = np.empty(points)
    for index, level in enumerate(inverse):
        parts = [side[numbers.permutation(len(side))[: math.ceil(len(side) / level)]] for side in (x, y)]
        values[index] = frechet_distance(*parts)
    centred = inverse - inverse.mean()
    slope = float(centred @ values / (centred @ centred))
    value = float(values.mean()) - slope * float(inverse.mean())
    residual = values - value - slope * inverse
    spread = float(residual @ residual) / (points - 2)
    error = math.sqrt(spread * (1 / points + float(inverse.mean()) ** 2 / float(centred @ centred)))
    return Extrapolation(value, error)
