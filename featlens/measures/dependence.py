"""Distance correlation: dependence of any kind, through distances between samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from featlens.measures.arrays import Array
from featlens.measures.choices import one_of
from featlens.measures.declare import Alignment, declare, evaluate
from featlens.measures.kernels import distances, doubly_centred, u_centred

__all__ = ["DistanceCorrelation", "distance_correlation"]

Estimator = Literal["debiased", "biased"]
ESTIMATORS = ("debiased", "biased")


@dataclass(frozen=True)
class DistanceCorrelation(Alignment):
    """Cosine of centred distance matrices, debiased; its root, biased."""

    estimator: str = "debiased"

    @property
    def least(self) -> int:
        """Smallest number of samples."""
        return 4 if self.estimator == "debiased" else 2

    def matrix(self, x: Array) -> Array:
        """Centred Euclidean distances."""
        return (u_centred if self.estimator == "debiased" else doubly_centred)(distances(x))

    def finish(self, cosine: float) -> float:
        """The cosine, or its square root: never below 0 but by rounding."""
        return cosine if self.estimator == "debiased" or math.isnan(cosine) else math.sqrt(max(cosine, 0.0))


def _method(estimator: Any = "debiased") -> DistanceCorrelation:
    return DistanceCorrelation(one_of(estimator, ESTIMATORS, "distance_correlation", "estimator"))


def distance_correlation(x: Array, y: Array, estimator: Estimator = "debiased") -> float:
    """Squared distance correlation without bias, or, biased, the classical distance correlation.

    Direction: similarity. Range: -1 to 1 debiased, never clamped; 0 to 1 biased. Invariant to shifts,
    orthogonal maps and a positive factor.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 4 (2 if biased).
    estimator
        ``"debiased"``: an estimate of the *square*, from U-centred distances. ``"biased"``: the root, which
        tends to 1 for d >> n whatever the features.

    Returns
    -------
    float
        NaN if a side is constant or, debiased, its samples are all equally far apart.

    References
    ----------
    Szekely, Rizzo and Bakirov (2007), Annals of Statistics 35, definition 5; Szekely and Rizzo (2014), Annals
    of Statistics 42, section 3, and arXiv 1310.2926.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(distance_correlation(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    return evaluate(MEASURE, x, y, estimator=estimator)


MEASURE = declare(
    distance_correlation,
    _method,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="distance correlation",
    family="dependence",
    direction="similarity",
    low=-1.0,
    high=1.0,
    symmetric=True,
    least=4,
    cost="n^2 (d1 + d2)",
    reference="Szekely and Rizzo 2014, Annals of Statistics 42, arXiv 1310.2926",
    blind="directions of small variance, and which distance is large for which reason",
)
