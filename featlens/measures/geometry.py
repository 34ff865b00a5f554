"""Shape of one set of features: how many dimensions it uses, how narrow a cone it fills, what is dead.

Each function takes features (n, d), numpy or torch, and gives a float; none needs a second side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from featlens.errors import UsageError
from featlens.measures.arrays import Array, centred, checked, namespace
from featlens.measures.kernels import TIES, distinct, identity, sized, squared_distances

__all__ = [
    "GEOMETRY",
    "TwoNN",
    "anisotropy",
    "dead_units",
    "effective_rank",
    "geometry",
    "participation_ratio",
    "rankme",
    "two_nn",
]

GEOMETRY = (
    "effective_rank",
    "rankme",
    "participation_ratio",
    "two_nn",
    "anisotropy",
    "dead_units",
)
"""Keys of :func:`geometry`."""

EPSILON = 1e-7
DISCARD = 0.1


class TwoNN(NamedTuple):
    """Intrinsic dimension and what it rests on."""

    dimension: float
    """Estimate; NaN if fewer than three samples differ or all ratios are 1."""
    standard_error: float
    """Of the estimate, as if the ratios of all samples were independent; NaN with it."""
    duplicates: float
    """Share of the samples that were left out because another has the same features."""


def entropy_rank(singular: Array, epsilon: float = 0.0) -> float:
    """Exponential of the entropy of singular values (k,) as shares of their sum."""
    xp = namespace(singular)
    total = float(xp.sum(singular))
    if not total > 0:
        return math.nan
    shares = singular / total + epsilon
    kept = xp.where(shares > 0, shares, xp.ones_like(shares))
    return math.exp(-float(xp.sum(shares * xp.log(kept))))


def _singular(x: Array) -> Array:
    return namespace(x).linalg.svdvals(sized(x))


def effective_rank(x: Array) -> float:
    """Exponential of the entropy of the singular values of the centred features: between 1 and min(n - 1, d).

    Singular values count in proportion to themselves, not to their squares: small ones weigh more than in
    :func:`participation_ratio`. NaN for constant features. n >= 2.

    References
    ----------
    Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality, equations 3 to 5.

    Examples
    --------
    >>> import numpy as np
    >>> round(effective_rank(np.vstack([np.eye(3), -np.eye(3)])), 6)
    3.0
    """
    return entropy_rank(_singular(centred(checked(x, "x", 2, "effective_rank"))))


def rankme(x: Array) -> float:
    """RankMe: the same entropy for the features as they are, not centred, with 1e-7 added to each share.

    Between 1 and min(n, d), up to the 1e-7. A mean far above the spread makes it 1. NaN if all features are
    zero. n >= 2.

    References
    ----------
    arXiv 2210.02885, equations 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> round(rankme(np.eye(5)), 3)
    5.0
    """
    return entropy_rank(_singular(checked(x, "x", 2, "rankme")), EPSILON)


def participation_ratio(x: Array) -> float:
    """(sum l)^2 / sum l^2 for the eigenvalues l of the covariance: between 1 and min(n - 1, d).

    NaN for constant features. n >= 2.

    References
    ----------
    Gao et al. (2017), A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv 214262,
    equation 5.

    Examples
    --------
    >>> import numpy as np
    >>> round(participation_ratio(np.vstack([np.eye(3), -np.eye(3)])), 6)
    3.0
    """
    x = sized(centred(checked(x, "x", 2, "participation_ratio")))
    # From the traces of the Gram matrix and of its square; no eigenvalues are needed.
    xp = namespace(x)
    gram = xp.matmul(x.T, x) if x.shape[1] <= x.shape[0] else xp.matmul(x, x.T)
    squares = float(xp.sum(gram * gram))
    return float(xp.sum(x * x)) ** 2 / squares if squares > 0 else math.nan


def two_nn(x: Array, discard: float = DISCARD) -> TwoNN:
    """Intrinsic dimension from the ratio of the distances to the second and the first neighbour.

    Parameters
    ----------
    x
        (n, d), n >= 4. Of samples with equal features one is kept: the ratio would be infinite.
    discard
        Share of the largest ratios that the fit leaves out, at least 0 and below 1; 0.1 in the paper.

    Returns
    -------
    TwoNN
        Dimension, its standard error, and the share of samples left out as duplicates. The standard error
        treats the ratios as independent, which they are up to the neighbours that samples share.

    References
    ----------
    Facco et al. (2017), arXiv 1803.06992, equation 5 and the algorithm after it.

    Examples
    --------
    >>> import numpy as np
    >>> plane = np.random.default_rng(0).uniform(size=(2000, 2))
    >>> found = two_nn(plane @ np.random.default_rng(1).normal(size=(2, 50)))
    >>> abs(found.dimension - 2) < 3 * found.standard_error
    True
    """
    share: Any = discard
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise UsageError(f"two_nn: discard must be at least 0 and below 1, got {discard!r}")
    x = checked(x, "x", 4, "two_nn")
    first, _ = distinct(x)
    kept = namespace(x).take(x, first, axis=0)
    duplicates = 1 - kept.shape[0] / x.shape[0]
    if kept.shape[0] < 3:
        return TwoNN(math.nan, math.nan, duplicates)
    return TwoNN(*fit_ratios(squared_distances(kept), discard), duplicates)


def fit_ratios(squared: Array, discard: float = DISCARD) -> tuple[float, float]:
    """Slope through the origin of -log(1 - F) against log(r2 / r1), and its standard error."""
    from array_api_compat import device

    xp = namespace(squared)
    n = squared.shape[0]
    apart = xp.where(identity(squared) > 0, xp.full_like(squared, math.inf), squared)
    rows = xp.arange(n, device=device(squared))
    nearest = xp.argmin(apart, axis=1)
    first = apart[rows, nearest]
    apart[rows, nearest] = math.inf
    # Squared distances: half the logarithm of their ratio.
    ratios = xp.sort(xp.log(xp.min(apart, axis=1) / first)) / 2
    ratios = xp.where(ratios > TIES, ratios, xp.zeros_like(ratios))
    used = min(n - 1, math.floor(n * (1 - discard)))
    if used < 1:
        return math.nan, math.nan
    left = xp.arange(n, n - used, -1, dtype=xp.float64, device=device(squared))
    ratios, levels = ratios[:used], -xp.log((left - 1) / n)
    squares = float(xp.sum(ratios * ratios))
    if not squares > 0:
        return math.nan, math.nan
    slope = float(xp.sum(ratios * levels)) / squares
    # Under the model the ratios are ordered exponentials: sums of independent gaps Z_j / (n - j + 1).
    # To first order slope / d = 1 - sum_i y_i (x_i d - y_i) / sum y^2, in which Z_j has this weight:
    weights = xp.flip(xp.cumsum(xp.flip(levels, axis=0), 0), axis=0) / left
    spread = math.sqrt(float(xp.sum(weights * weights))) / float(xp.sum(levels * levels))
    return slope, slope * spread


def anisotropy(x: Array) -> float:
    """Mean cosine between different samples: 0 where directions are spread evenly, 1 where all are the same.

    Samples that are zero have no direction and are left out; NaN if fewer than two remain. n >= 2.

    References
    ----------
    arXiv 1909.00512, section 3.4 (the average cosine similarity of random words).

    Examples
    --------
    >>> import numpy as np
    >>> round(anisotropy(np.eye(4) + 9), 3)
    0.997
    """
    return mean_cosine(directions_of(checked(x, "x", 2, "anisotropy")))


def directions_of(x: Array) -> Array:
    """Rows divided by their norms; rows of zeros stay."""
    xp = namespace(x)
    largest = xp.max(xp.abs(x), axis=1, keepdims=True)
    x = x / xp.where(largest > 0, largest, xp.ones_like(largest))
    lengths = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
    return x / xp.where(lengths > 0, lengths, xp.ones_like(lengths))


def mean_cosine(directions: Array) -> float:
    xp = namespace(directions)
    squares = float(xp.sum(directions * directions))
    count = round(squares)
    if count < 2:
        return math.nan
    total = xp.sum(directions, axis=0)
    return (float(xp.sum(total * total)) - squares) / (count * (count - 1))


def dead_units(x: Array) -> float:
    """Share of the features that are the same number for all samples: 0 to 1. n >= 2.

    Examples
    --------
    >>> import numpy as np
    >>> dead_units(np.array([[1.0, 0.0, 3.0, 0.0], [2.0, 0.0, 3.0, 1.0]]))
    0.5
    """
    x = checked(x, "x", 2, "dead_units")
    xp = namespace(x)
    return float(xp.mean(xp.astype(xp.max(x, axis=0) == xp.min(x, axis=0), xp.float64)))


def geometry(x: Array) -> dict[str, float]:
    """All of :data:`GEOMETRY` by name, for features (n, d), n >= 4.

    Examples
    --------
    >>> import numpy as np
    >>> found = geometry(np.random.default_rng(0).normal(size=(200, 6)))
    >>> {key: round(value, 1) for key, value in found.items() if key != "anisotropy"}
    {'effective_rank': 6.0, 'rankme': 6.0, 'participation_ratio': 5.9, 'two_nn': 6.0, 'dead_units': 0.0}
    """
    x = checked(x, "x", 4, "geometry")
    found: Mapping[str, Callable[[Array], float]] = {
        "effective_rank": effective_rank,
        "rankme": rankme,
        "participation_ratio": participation_ratio,
        "two_nn": lambda x: two_nn(x).dimension,
        "anisotropy": anisotropy,
        "dead_units": dead_units,
    }
    return {name: found[name](x) for name in GEOMETRY}
