"""Representational similarity analysis: how alike the distances between samples are on both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from featlens.measures.arrays import Array, namespace, take
from featlens.measures.choices import one_of
from featlens.measures.declare import Alignment, Method, declare, evaluate
from featlens.measures.kernels import cleared, cosine_distances, distances, identity, ranks, upper

__all__ = ["RSA", "KendallRSA", "rsa"]

Distance = Literal["correlation", "cosine", "euclidean"]
Comparison = Literal["spearman", "pearson", "kendall"]
DISTANCES = ("correlation", "cosine", "euclidean")
COMPARISONS = ("spearman", "pearson", "kendall")


def dissimilarities(x: Array, distance: str) -> Array:
    """Distances (n, n) between the rows of checked float64 features (n, d), up to a common factor."""
    xp = namespace(x)
    if distance == "euclidean":
        return distances(x)
    if distance == "correlation":
        # The mean of d equal numbers may differ from them by rounding; differences of equal numbers are zero.
        x = x - x[:, :1]
        x = x - xp.mean(x, axis=1, keepdims=True)
    return cosine_distances(x)


def _ranked(apart: Array) -> Array:
    """Symmetric (n, n) with the ranks of the distances off the diagonal, NaN if they are."""
    xp = namespace(apart)
    out = xp.zeros_like(apart)
    values = upper(apart)
    out[xp.triu(xp.ones_like(apart), k=1) > 0] = ranks(values) if bool(xp.all(values >= 0)) else values
    return out + out.T


@dataclass(frozen=True)
class RSA(Alignment):
    """Pearson or Spearman correlation of distances, as a cosine of centred matrices."""

    distance: str = "correlation"
    comparison: str = "spearman"

    def matrix(self, x: Array) -> Array:
        """Distances or their ranks, minus their mean, with zeros on the diagonal."""
        xp = namespace(x)
        apart = dissimilarities(x, self.distance)
        if self.comparison == "spearman":
            apart = _ranked(apart)
        n = x.shape[0]
        mean = xp.sum(apart) / (n * (n - 1))
        return cleared((apart - mean) * (1 - identity(x)), apart)


@dataclass(frozen=True)
class KendallRSA:
    """Kendall's tau-b of distances."""

    n_squared: ClassVar[bool] = True

    distance: str = "correlation"
    comparison: str = "kendall"

    def prepare(self, x: Array) -> Array:
        """Ranks of the distances (n, n): equal up to rounding are equal."""
        return _ranked(dissimilarities(x, self.distance))

    def combine(self, a: Array, b: Array) -> float:
        """Tau-b of the entries above the diagonals."""
        from scipy.stats import kendalltau

        first, second = (_numpy(upper(ranked)) for ranked in (a, b))
        if np.isnan(first).any() or np.isnan(second).any():
            return math.nan
        # The p-value is not used, and the exact one would be slow.
        return float(kendalltau(first, second, method="asymptotic").statistic)

    def permute(self, state: Array, order: NDArray[np.int64]) -> Array:
        """Rows and columns reordered."""
        return take(take(state, order), order, axis=1)


def _numpy(array: Array) -> NDArray[np.float64]:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array, dtype=np.float64)


def _method(distance: Any = "correlation", comparison: Any = "spearman") -> Method:
    distance = one_of(distance, DISTANCES, "rsa", "distance")
    comparison = one_of(comparison, COMPARISONS, "rsa", "comparison")
    return KendallRSA(distance) if comparison == "kendall" else RSA(distance, comparison)


def rsa(x: Array, y: Array, distance: Distance = "correlation", comparison: Comparison = "spearman") -> float:
    """Correlation, over all pairs of samples, of their distance in x with their distance in y.

    Direction: similarity. Range: -1 to 1. Invariances depend on the distance: to a positive factor and to the
    order of features always; to orthogonal maps with ``"cosine"`` and ``"euclidean"``; to shifts with
    ``"euclidean"`` only.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.
    distance
        ``"correlation"``, 1 - the correlation of two samples over the features; ``"cosine"``; or
        ``"euclidean"``.
    comparison
        ``"spearman"``, ``"pearson"`` or ``"kendall"`` (tau-b). Distances equal up to rounding are ties.

    Returns
    -------
    float
        NaN if all distances of a side are equal, or if a sample has no direction: zero with ``"cosine"``, all
        features equal with ``"correlation"`` (so always for d = 1).

    References
    ----------
    Kriegeskorte, Mur and Bandettini (2008), Frontiers in Systems Neuroscience 2:4.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(rsa(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    return evaluate(MEASURE, x, y, distance=distance, comparison=comparison)


MEASURE = declare(
    rsa,
    _method,
    invariances=("scale", "permutation"),
    title="RSA",
    family="rsa",
    direction="similarity",
    low=-1.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n^2 (d1 + d2) + n^2 log n",
    reference="Kriegeskorte et al. 2008, Frontiers in Systems Neuroscience 2:4",
    blind="what the distance leaves out: a sample's mean and norm with the correlation distance",
)
