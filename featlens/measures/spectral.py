"""Similarities of spectra and leading subspaces: normalised Bures, and the overlap of principal subspaces.

Both compare in the space of samples: the Gram matrices K = XX' and L = YY' of centred features, or the spans
of their leading eigenvectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featlens.measures.arrays import Array, namespace, take
from featlens.measures.declare import Method, declare, evaluate
from featlens.measures.linear import number, principal
from featlens.measures.procrustes import Shape, Side

__all__ = ["bures", "subspace_overlap"]


class Bures(Shape):
    """Normalised Bures similarity."""

    def combine(self, a: Side, b: Side) -> float:
        """Sum of the singular values of X'Y for features of norm 1."""
        if not (a.defined and b.defined):
            return math.nan
        xp = namespace(a.rows, b.rows)
        return float(xp.sum(xp.linalg.svdvals(xp.matmul(a.rows.T, b.rows))))


@dataclass(frozen=True)
class Overlap:
    """Overlap of the spans of leading principal components."""

    variance: float = 0.99

    def prepare(self, x: Array) -> Array:
        """Orthonormal basis (n, k)."""
        return principal(x, self.variance)

    def combine(self, a: Array, b: Array) -> float:
        """Sum of squared cosines over the larger dimension; NaN if a subspace is empty or everything."""
        if not all(0 < side.shape[1] < side.shape[0] - 1 for side in (a, b)):
            return math.nan
        xp = namespace(a, b)
        return float(xp.sum(xp.matmul(a.T, b) ** 2) / max(a.shape[1], b.shape[1]))

    def permute(self, state: Array, order: NDArray[np.int64]) -> Array:
        """Rows reordered."""
        return take(state, order)

    def warning(self, n: int, d1: int, d2: int) -> str | None:
        """What to know of a value at this n and these widths."""
        if min(d1, d2) < n / 2:
            return None
        return (
            f"{n} samples for widths {d1} and {d2}: unrelated subspaces of k dimensions overlap by about "
            "k / (n - 1), and n - 1 dimensions are everything (NaN); compare with the null level"
        )


def bures(x: Array, y: Array) -> float:
    """Normalised Bures similarity of two feature sets of the same samples: fidelity of their Gram matrices.

    Direction: similarity. Range: 0 to 1. It is tr (K^1/2 L K^1/2)^1/2 / sqrt(tr K tr L) for the Gram matrices
    K, L of the centred features, which equals |X'Y|_* / (|X|_F |Y|_F), the cosine of
    :func:`angular_shape`. Invariant to shifts, orthogonal maps and isotropic scaling of either side.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.

    Returns
    -------
    float
        NaN if either side is constant.

    References
    ----------
    arXiv 2003.11498 (normalised Bures similarity); arXiv 2311.11436 (its duality with the shape distance).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(bures(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    return evaluate(BURES, x, y)


def subspace_overlap(x: Array, y: Array, variance: float = 0.99) -> float:
    """Share of the leading principal subspaces of two feature sets that they have in common.

    Direction: similarity. Range: 0 to 1. On each side the fewest principal components whose share of the
    variance reaches ``variance`` are kept; U (n, k1) and V (n, k2) are orthonormal bases of their scores, and
    the value is |U'V|_F^2 / max(k1, k2): 1 only if both subspaces are the same, k2 / k1 if the smaller lies
    in the larger. Inside the subspaces the variance of a direction plays no part. Invariant to shifts,
    orthogonal maps and isotropic scaling of either side.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.
    variance
        Share in (0, 1]; 1 keeps every direction above rounding errors of float32 (1e-6 of the largest
        singular value).

    Returns
    -------
    float
        NaN if either side is constant, or if n - 1 components are kept on either side: they span everything,
        and the value would be k / (n - 1) whatever the data.

    References
    ----------
    arXiv 1812.04754, equation 5, there for k1 = k2.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(subspace_overlap(x, x[:, :4], variance=1.0), 6)
    0.5
    """
    return evaluate(OVERLAP, x, y, variance=variance)


def _overlap(variance: float = 0.99) -> Method:
    return Overlap(number(variance, "variance", "subspace_overlap", 0, 1, (False, True)))


BURES = declare(
    bures,
    Bures,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="Bures similarity",
    family="spectral",
    direction="similarity",
    low=0.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n d1 d2 + d1 d2 min(d1, d2), widths above n counting as n",
    reference="arXiv 2003.11498; arXiv 2311.11436",
    blind="directions of small variance: each direction counts with its standard deviation",
)
OVERLAP = declare(
    subspace_overlap,
    _overlap,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="subspace overlap",
    family="spectral",
    direction="similarity",
    low=0.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n k1 k2 for k components, after n d min(n, d) once per side",
    reference="arXiv 1812.04754, equation 5",
    blind="the components below the share of variance, and how the variance is spread over those above it",
)
