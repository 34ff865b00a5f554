"""Canonical correlations: their mean, their mean square, SVCCA and projection-weighted CCA.

With orthonormal bases U (n, r1) and V (n, r2) of the spans of the centred features, the canonical
correlations are the singular values of U'V. A ridge k adds k times the mean non-zero eigenvalue of a side's
covariance to all of its eigenvalues, that is, scales column i of U by s_i / sqrt(s_i^2 + k mean(s^2)).

Few samples: where the rank of a side is n - 1, its span is everything, and all canonical correlations are 1
whatever the data. Without a ridge the value is NaN then. Where the ranks add up to more than n - 1, some
correlations are 1 whatever the data, and the value stands but is too high.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featlens.measures.arrays import Array, centred, namespace, rescaled, take
from featlens.measures.declare import Method, declare, evaluate
from featlens.measures.linear import TOLERANCE, column_norms, number, principal, rank, unit_columns

__all__ = ["mean_cca", "mean_squared_cca", "pwcca", "svcca"]


class Span(NamedTuple):
    """Basis of the span of one side."""

    basis: Array
    """(n, rank), orthonormal, or shrunk by the ridge; rank 0 for constant features."""
    features: Array | None
    """(rank, d): inner products of the basis with the centred features, where weights need them."""
    trivial: bool
    """Whether the span is everything."""


@dataclass(frozen=True)
class CCA:
    """Canonical correlations averaged in one of several ways."""

    mean: Literal["plain", "squared", "weighted"] = "plain"
    ridge: float = 0.0
    tolerance: float = TOLERANCE
    variance: float | None = None
    """Keep the leading principal components with this share of the variance first."""

    def prepare(self, x: Array) -> Span:
        """Basis of the span of the centred features."""
        xp = namespace(x)
        moved = centred(x)
        if self.variance is not None:
            basis = principal(x, self.variance)
        elif self.ridge:
            basis = self._shrunk(rescaled(moved))
        else:
            # Equal norms of all features make the rank independent of the units of single ones.
            units = unit_columns(moved, column_norms(moved, x))
            basis, values, _ = xp.linalg.svd(units, full_matrices=False)
            basis = basis[:, : rank(values, self.tolerance)]
        features = xp.matmul(basis.T, rescaled(moved)) if self.mean == "weighted" else None
        return Span(basis, features, not self.ridge and basis.shape[1] >= x.shape[0] - 1)

    def _shrunk(self, x: Array) -> Array:
        xp = namespace(x)
        basis, values, _ = xp.linalg.svd(x, full_matrices=False)
        kept = rank(values, self.tolerance)
        squares = values[:kept] ** 2
        level = self.ridge * float(xp.sum(squares)) / max(kept, 1)
        return basis[:, :kept] * xp.sqrt(squares / (squares + level))

    def combine(self, a: Span, b: Span) -> float:
        """The mean; NaN for constant features and where a span is everything."""
        count = min(a.basis.shape[1], b.basis.shape[1])
        if a.trivial or b.trivial or not count:
            return math.nan
        xp = namespace(a.basis, b.basis)
        product = xp.matmul(a.basis.T, b.basis)
        if self.mean == "squared":
            return float(xp.sum(product * product) / count)
        if self.mean == "plain":
            return float(xp.sum(xp.linalg.svdvals(product)) / count)
        u, correlations, _ = xp.linalg.svd(product, full_matrices=False)
        weights = xp.sum(xp.abs(xp.matmul(u.T, a.features)), axis=1)
        return float(xp.sum(weights * correlations) / xp.sum(weights))

    def permute(self, state: Span, order: NDArray[np.int64]) -> Span:
        """Rows of the basis reordered."""
        return state._replace(basis=take(state.basis, order))

    def warning(self, n: int, d1: int, d2: int) -> str | None:
        """What to know of a value at this n and these widths."""
        if d1 + d2 < n:
            return None
        told = f"{n} samples for widths {d1} and {d2}: "
        if max(d1, d2) < n - 1 or self.ridge:
            return told + "canonical correlations of unrelated features are high; compare with the null level"
        return told + (
            "where a side has rank n - 1 its canonical correlations are 1 whatever the data, and the "
            "value is NaN; take more samples, fewer components or a ridge"
        )


def mean_cca(x: Array, y: Array, ridge: float = 0.0, tolerance: float = TOLERANCE) -> float:
    """Mean of the canonical correlations of two feature sets of the same samples.

    Direction: similarity. Range: 0 to 1. The mean goes over as many correlations as the smaller of both
    numerical ranks. Without a ridge invariant to shifts and to every invertible linear map of either side;
    with one to shifts, orthogonal maps and isotropic scaling, and below 1 for x with itself.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.
    ridge
        Added to every eigenvalue of the covariance of a side, as a share of the mean non-zero one.
    tolerance
        Directions whose singular value is below this share of the largest are dropped. Without a ridge the
        features are brought to equal norms first.

    Returns
    -------
    float
        NaN if either side is constant and, without a ridge, if the rank of either side is n - 1: then all
        correlations are 1 whatever the data.

    References
    ----------
    arXiv 1905.00414, table 1 (mean CCA).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(mean_cca(x, x @ [[1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [1, 0, 0, 5]] + 1), 6)
    1.0
    """
    return evaluate(MEAN, x, y, ridge=ridge, tolerance=tolerance)


def mean_squared_cca(x: Array, y: Array, ridge: float = 0.0, tolerance: float = TOLERANCE) -> float:
    """Mean of the squared canonical correlations of two feature sets of the same samples.

    Direction: similarity. Range: 0 to 1. |U'V|_F^2 / min(r1, r2) for orthonormal bases U, V of both spans:
    the share of variance that the best linear prediction explains, averaged over all directions of the side
    of smaller rank. Invariances, options and NaN as in :func:`mean_cca`.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.
    ridge
        Added to every eigenvalue of the covariance of a side, as a share of the mean non-zero one.
    tolerance
        Directions whose singular value is below this share of the largest are dropped.

    Returns
    -------
    float
        NaN if either side is constant and, without a ridge, if the rank of either side is n - 1.

    References
    ----------
    arXiv 1905.00414, table 1 (R2_CCA).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(mean_squared_cca(x[:, :2], x), 6)
    1.0
    """
    return evaluate(SQUARED, x, y, ridge=ridge, tolerance=tolerance)


def svcca(x: Array, y: Array, variance: float = 0.99) -> float:
    """Mean canonical correlation of the leading principal components of two feature sets of the same samples.

    Direction: similarity. Range: 0 to 1. On each side the fewest principal components are kept whose share of
    the variance, the sum of squared singular values, reaches ``variance``. Invariant to shifts, orthogonal
    maps and isotropic scaling of either side.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.
    variance
        Share in (0, 1].

    Returns
    -------
    float
        NaN if either side is constant, or if n - 1 components are kept on either side.

    References
    ----------
    arXiv 1706.05806, section 2; arXiv 1905.00414, table 1.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(svcca(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    return evaluate(SINGULAR, x, y, variance=variance)


def pwcca(x: Array, y: Array, ridge: float = 0.0, tolerance: float = TOLERANCE) -> float:
    """Mean of the canonical correlations weighted by how much of x each one accounts for.

    Direction: similarity, not symmetric. Range: 0 to 1. With the canonical variables h_i of x and its centred
    features x_j, correlation i has the weight sum_j |<h_i, x_j>|. Invariant to shifts, to the order of
    features and to isotropic scaling of either side, and to every invertible linear map of y, but not of x.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3. Weights come from x,
        whichever is wider.
    ridge, tolerance
        As in :func:`mean_cca`.

    Returns
    -------
    float
        NaN if either side is constant and, without a ridge, if the rank of either side is n - 1.

    References
    ----------
    arXiv 1806.05759; arXiv 1905.00414, table 1 (PWCCA).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(pwcca(x, x @ [[1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 3, 1], [1, 0, 0, 5]] + 1), 6)
    1.0
    """
    return evaluate(WEIGHTED, x, y, ridge=ridge, tolerance=tolerance)


def _checked(ridge: float, tolerance: float, measure: str) -> tuple[float, float]:
    return number(ridge, "ridge", measure, 0), number(tolerance, "tolerance", measure, 0, 1)


def _mean(ridge: float = 0.0, tolerance: float = TOLERANCE) -> Method:
    return CCA("plain", *_checked(ridge, tolerance, "mean_cca"))


def _squared(ridge: float = 0.0, tolerance: float = TOLERANCE) -> Method:
    return CCA("squared", *_checked(ridge, tolerance, "mean_squared_cca"))


def _weighted(ridge: float = 0.0, tolerance: float = TOLERANCE) -> Method:
    return CCA("weighted", *_checked(ridge, tolerance, "pwcca"))


def _singular(variance: float = 0.99) -> Method:
    return CCA(variance=number(variance, "variance", "svcca", 0, 1, (False, True)))


MEAN = declare(
    mean_cca,
    _mean,
    invariances=("shift", "scale", "permutation", "orthogonal", "feature_scale", "linear"),
    title="mean CCA",
    family="cca",
    direction="similarity",
    low=0.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n d1 d2 + d1 d2 min(d1, d2), after n d min(n, d) once per side",
    reference="arXiv 1905.00414, table 1",
    blind="how large a direction is: noise of small variance counts as much as the signal",
)
SQUARED = declare(
    mean_squared_cca,
    _squared,
    invariances=("shift", "scale", "permutation", "orthogonal", "feature_scale", "linear"),
    title="mean squared CCA",
    family="cca",
    direction="similarity",
    low=0.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n d1 d2, after n d min(n, d) once per side",
    reference="arXiv 1905.00414, table 1",
    blind="how large a direction is: noise of small variance counts as much as the signal",
)
SINGULAR = declare(
    svcca,
    _singular,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="SVCCA",
    family="cca",
    direction="similarity",
    low=0.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n k1 k2 for k components, after n d min(n, d) once per side",
    reference="arXiv 1706.05806, section 2; arXiv 1905.00414, table 1",
    blind="the components below the share of variance, and how large those above it are",
)
WEIGHTED = declare(
    pwcca,
    _weighted,
    invariances=("shift", "scale", "permutation"),
    title="projection-weighted CCA",
    family="cca",
    direction="similarity",
    low=0.0,
    high=1.0,
    symmetric=False,
    least=3,
    cost="n d1 d2 + d1 d2 min(d1, d2), after n d min(n, d) once per side",
    reference="arXiv 1806.05759; arXiv 1905.00414, table 1",
    blind="how large the directions of y are, and directions of x beyond the rank of y",
)
