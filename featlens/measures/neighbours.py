"""Whether the same samples are nearest neighbours on both sides.

Ties. Where several samples are equally far away at the k-th place, as duplicates are, they share the places
that are left: each weighs (places left) / (number tied), the others 1 or 0. So neither the order of the
samples nor rounding decides, and a side without any order, whose samples are all equally far apart, has no
value (NaN) where taking the first k would make two such sides agree completely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens.measures.arrays import Array, centred, namespace, rescaled, take
from featlens.measures.choices import one_of, whole
from featlens.measures.declare import Alignment, declare, evaluate
from featlens.measures.kernels import TIES, identity, squared_distances, unit_rows

__all__ = ["CKNNA", "JaccardKNN", "MutualKNN", "cknna", "jaccard_knn", "mutual_knn"]

Metric = Literal["cosine", "euclidean"]
METRICS = ("cosine", "euclidean")


def neighbour_weights(x: Array, k: int) -> Array:
    """Weight (n, n) of sample j among the k nearest of sample i; rows sum to k, the diagonal is 0.

    Zeros everywhere if no sample has nearer ones than others, NaN if x holds NaN.
    """
    xp = namespace(x)
    n = x.shape[0]
    apart = squared_distances(x)
    apart = xp.where(identity(x) > 0, xp.full_like(apart, math.inf), apart)
    limit = xp.sort(apart, axis=1)[:, k - 1 : k]
    near = xp.astype(apart < limit * (1 - TIES), xp.float64)
    tied = xp.astype(apart <= limit * (1 + TIES), xp.float64) - near
    sharing = xp.sum(tied, axis=1, keepdims=True)
    if not bool(xp.all(sharing > 0)):
        return apart * math.nan
    if bool(xp.all(sharing == n - 1)):
        return tied * 0
    return near + tied * (k - xp.sum(near, axis=1, keepdims=True)) / sharing


@dataclass(frozen=True)
class _Neighbours:
    k: int = 10
    metric: str = "cosine"

    @property
    def least(self) -> int:
        """Smallest number of samples: with k + 1 all others would be neighbours."""
        return self.k + 2

    def placed(self, x: Array) -> Array:
        """Features (n, d) whose Euclidean distances order the neighbours."""
        return unit_rows(x) if self.metric == "cosine" else x


@dataclass(frozen=True)
class MutualKNN(_Neighbours, Alignment):
    """Share of common neighbours, as a cosine of their indicators."""

    def matrix(self, x: Array) -> Array:
        """Weights of the neighbours."""
        return neighbour_weights(self.placed(x), self.k)


@dataclass(frozen=True)
class CKNNA(_Neighbours, Alignment):
    """Alignment of centred kernels on common neighbours."""

    def matrix(self, x: Array) -> Array:
        """Centred kernel times the weights of the neighbours."""
        xp = namespace(x)
        placed = self.placed(x)
        spread = centred(placed)
        if self.metric == "cosine":
            kernel = xp.matmul(placed, spread.T)
        else:
            spread = rescaled(spread)
            kernel = xp.matmul(spread, spread.T)
        return neighbour_weights(placed, self.k) * kernel


@dataclass(frozen=True)
class JaccardKNN(_Neighbours):
    """Mean over the samples of common neighbours / neighbours on either side."""

    n_squared = True

    def prepare(self, x: Array) -> Array:
        """Weights of the neighbours, NaN if there are none."""
        xp = namespace(x)
        weights = neighbour_weights(self.placed(x), self.k)
        return weights if float(xp.sum(weights)) > 0 else weights + math.nan

    def combine(self, a: Array, b: Array) -> float:
        """Common weight by the larger one, row by row."""
        xp = namespace(a, b)
        common = xp.sum(xp.minimum(a, b), axis=1)
        return float(xp.mean(common / xp.sum(xp.maximum(a, b), axis=1)))

    def permute(self, state: Array, order: NDArray[np.int64]) -> Array:
        """Rows and columns reordered."""
        return take(take(state, order), order, axis=1)


def _checked(measure: str, k: Any, metric: Any) -> tuple[int, str]:
    return whole(k, 1, measure, "k"), one_of(metric, METRICS, measure, "metric")


def _require_enough(measure: str, x: Array, k: Any) -> None:
    shape: Any = getattr(x, "shape", ())
    if isinstance(k, int) and len(shape) == 2 and shape[0] < k + 2:
        raise UsageError(
            f"{measure}: k = {k} needs at least {k + 2} samples, got {shape[0]}; choose a smaller k"
        )


def _mutual(k: Any = 10, metric: Any = "cosine") -> MutualKNN:
    return MutualKNN(*_checked("mutual_knn", k, metric))


def _jaccard(k: Any = 10, metric: Any = "cosine") -> JaccardKNN:
    return JaccardKNN(*_checked("jaccard_knn", k, metric))


def _cknna(k: Any = 10, metric: Any = "cosine") -> CKNNA:
    return CKNNA(*_checked("cknna", k, metric))


def mutual_knn(x: Array, y: Array, k: int = 10, metric: Metric = "cosine") -> float:
    """Mean share of the k nearest neighbours of a sample in x that are so in y, too.

    Direction: similarity. Range: 0 to 1; unrelated features give about k / (n - 1). Invariant to orthogonal
    maps and a positive factor; to shifts with ``metric="euclidean"`` only.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= k + 2.
    k
        Number of neighbours; a sample is none of its own.
    metric
        ``"cosine"``, as in the paper's code, or ``"euclidean"``.

    Returns
    -------
    float
        NaN if the samples of a side are all equally far apart, or, for ``"cosine"``, if one is zero. With
        ties at the k-th place their weights are shared, and the value is the cosine of the weights.

    References
    ----------
    arXiv 2405.07987, section 2 and appendix A.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(mutual_knn(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    _require_enough("mutual_knn", x, k)
    return evaluate(MUTUAL, x, y, k=k, metric=metric)


def jaccard_knn(x: Array, y: Array, k: int = 10, metric: Metric = "cosine") -> float:
    """Mean, over samples, of the neighbours common to x and y divided by those in either.

    Direction: similarity. Range: 0 to 1. Invariant to orthogonal maps and a positive factor; to shifts with
    ``metric="euclidean"`` only. Parameters and NaN as in :func:`mutual_knn`; tied weights count by their
    smaller and larger values.

    References
    ----------
    arXiv 2305.06329, neighbourhood measures.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(jaccard_knn(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    _require_enough("jaccard_knn", x, k)
    return evaluate(JACCARD, x, y, k=k, metric=metric)


def cknna(x: Array, y: Array, k: int = 10, metric: Metric = "cosine") -> float:
    """Alignment of centred inner products, over pairs that are k-nearest neighbours on both sides.

    With A_ij = <x_i, x_j> - mean_l <x_i, x_l> where j is one of the k nearest of i, 0 elsewhere, and B
    likewise of y, the value is <A, B> / (|A| |B|): the sum above the line runs over common neighbours, those
    below over either side's own.

    Direction: similarity. Range: -1 to 1. Invariant to orthogonal maps and a positive factor; to shifts with
    ``metric="euclidean"`` only.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= k + 2.
    k
        Number of neighbours; a sample is none of its own.
    metric
        ``"cosine"``: rows divided by their norms, as in the paper's code. ``"euclidean"``: rows minus their
        mean; neighbours by distance.

    Returns
    -------
    float
        NaN as in :func:`mutual_knn`.

    References
    ----------
    arXiv 2405.07987, appendix A; used in arXiv 2410.06940. Their code puts masked kernels into the unbiased
    HSIC instead, which gives other values.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(cknna(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    _require_enough("cknna", x, k)
    return evaluate(ALIGNED, x, y, k=k, metric=metric)


_TOLD: dict[str, Any] = {
    "invariances": ("scale", "permutation", "orthogonal"),
    "family": "neighbours",
    "direction": "similarity",
    "high": 1.0,
    "symmetric": True,
    "least": 12,
    "cost": "n^2 (d1 + d2) + n^2 log n",
}
MUTUAL = declare(
    mutual_knn,
    _mutual,
    title="mutual k-NN",
    low=0.0,
    reference="arXiv 2405.07987, appendix A",
    blind="everything but who is near: how near, and all large distances",
    **_TOLD,
)
JACCARD = declare(
    jaccard_knn,
    _jaccard,
    title="Jaccard k-NN",
    low=0.0,
    reference="arXiv 2305.06329, neighbourhood measures",
    blind="everything but who is near: how near, and all large distances",
    **_TOLD,
)
ALIGNED = declare(
    cknna,
    _cknna,
    title="CKNNA",
    low=-1.0,
    reference="arXiv 2405.07987, appendix A",
    blind="all pairs but near ones",
    **_TOLD,
)
