"""Procrustes distances and the matching of single features.

With centred features X (n, d1), Y (n, d2) of Frobenius norm 1, the narrower one padded with zero columns, and
Q over the orthogonal matrices,

    min_Q |X Q - Y|_F^2 = 2 - 2 |X'Y|_*,

where |.|_* is the sum of the singular values. Features wider than n are first replaced by (n, n) ones with
the same Gram matrix, which changes none of this.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featlens.measures.arrays import Array, centred, namespace, norm, rescaled, take
from featlens.measures.declare import Method, declare, evaluate
from featlens.measures.linear import column_norms, narrow, unit_columns

__all__ = ["Shape", "Side", "angular_shape", "permutation_matching", "procrustes"]

NEAR = 0.01
"""Below this squared distance 2 - 2 |X'Y|_* has lost digits, and the residual is formed."""


class Side(NamedTuple):
    """Centred features of norm 1, no wider than n."""

    rows: Array
    """(n, k)."""
    defined: bool
    """False for constant features; their rows are zero."""


class Shape:
    """What the Procrustes distances and the Bures similarity do to one side."""

    def prepare(self, x: Array) -> Side:
        """Centred, scaled, and narrowed to at most n columns."""
        x = rescaled(centred(x))
        length = norm(x)
        return Side(narrow(x) / (length or 1.0), length > 0)

    def permute(self, state: Side, order: NDArray[np.int64]) -> Side:
        """Rows reordered."""
        return Side(take(state.rows, order), state.defined)

    def warning(self, n: int, d1: int, d2: int) -> str | None:
        """What to know of a value at this n and these widths."""
        if max(d1, d2) < n:
            return None
        return (
            f"{n} samples for {max(d1, d2)} features: unrelated features look alike, too; "
            "compare with the null level"
        )


@dataclass(frozen=True)
class Procrustes(Shape):
    """Distance after the best rotation, or the angle that belongs to it."""

    angle: bool = False

    def combine(self, a: Side, b: Side) -> float:
        """The distance d in [0, sqrt(2)], or the angle 2 asin(d / 2)."""
        if not (a.defined and b.defined):
            return math.nan
        distance = _distance(a.rows, b.rows)
        # arccos(1 - d^2 / 2) is the same, and loses half the digits near 0.
        return 2 * math.asin(distance / 2) if self.angle else distance


def _distance(x: Array, y: Array) -> float:
    """The smallest |X Q - Y|_F; exact near 0."""
    xp = namespace(x, y)
    if x.shape[1] > y.shape[1]:
        x, y = y, x
    u, values, vt = xp.linalg.svd(xp.matmul(x.T, y), full_matrices=False)
    square = 2 - 2 * float(xp.sum(values))
    if square >= NEAR:
        return math.sqrt(square)
    return norm(xp.matmul(x, xp.matmul(u, vt)) - y)


class Matching:
    """Mean correlation of features matched one to one."""

    def prepare(self, x: Array) -> Array:
        """Features of mean 0 and norm 1, those that vary."""
        xp = namespace(x)
        moved = centred(x)
        norms = column_norms(moved, x)
        return xp.take(unit_columns(moved, norms), xp.nonzero(norms > 0)[0], axis=1)

    def combine(self, a: Array, b: Array) -> float:
        """Mean over the matched pairs; NaN if one side has no feature that varies."""
        from scipy.optimize import linear_sum_assignment

        if not (a.shape[1] and b.shape[1]):
            return math.nan
        found = namespace(a, b).matmul(a.T, b)
        correlations = np.asarray(found.cpu() if hasattr(found, "cpu") else found)
        matched = linear_sum_assignment(correlations, maximize=True)
        return float(correlations[matched].mean())

    def permute(self, state: Array, order: NDArray[np.int64]) -> Array:
        """Rows reordered."""
        return take(state, order)


def procrustes(x: Array, y: Array) -> float:
    """Orthogonal Procrustes distance of two feature sets of the same samples: the distance, not its square.

    Direction: distance, and a metric. Range: 0 to sqrt(2). Both sides are centred and scaled to Frobenius
    norm 1, the narrower one is padded with zero columns; the value is the smallest Frobenius norm of X Q - Y
    over orthogonal Q. Its square is 2 - 2 bures(x, y). Invariant to shifts, orthogonal maps and isotropic
    scaling of either side.

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
    arXiv 2110.14739, proposition 1; arXiv 2108.01661 (there the square).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(procrustes(x, 3 * x[:, ::-1] + 1), 6)
    0.0
    """
    return evaluate(PROCRUSTES, x, y)


def angular_shape(x: Array, y: Array) -> float:
    """Angular shape distance of two feature sets of the same samples, in radians.

    Direction: distance, and a metric. Range: 0 to pi/2. The angle between the centred features after the best
    rotation, arccos |X'Y|_* for features of norm 1; it is computed from the Procrustes distance d as
    2 asin(d / 2), which keeps its digits near 0. Invariant to shifts, orthogonal maps and isotropic scaling
    of either side.

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
    arXiv 2110.14739, proposition 1.

    Examples
    --------
    >>> x = np.eye(4)[:, :2]
    >>> round(angular_shape(x, x[::-1]) / np.pi, 3)
    0.392
    """
    return evaluate(ANGULAR, x, y)


def permutation_matching(x: Array, y: Array) -> float:
    """Mean correlation of the features of two sets, matched one to one so that it is largest.

    Direction: similarity. Range: -1 to 1. Correlations keep their sign: a feature and its negative do not
    match. With different widths min(d1, d2) pairs are formed and the features left over count for nothing;
    constant features are left out first. Invariant to shifts, to the order of features, and to a positive
    factor for each.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 3.

    Returns
    -------
    float
        NaN if all features of a side are constant.

    References
    ----------
    arXiv 1511.07543, section 3 (bipartite matching).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(permutation_matching(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    return evaluate(MATCHING, x, y)


def _distances() -> Method:
    return Procrustes()


def _angles() -> Method:
    return Procrustes(angle=True)


PROCRUSTES = declare(
    procrustes,
    _distances,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="Procrustes distance",
    family="procrustes",
    direction="distance",
    low=0.0,
    high=math.sqrt(2),
    symmetric=True,
    least=3,
    cost="n d1 d2 + d1 d2 min(d1, d2), widths above n counting as n",
    reference="arXiv 2110.14739, proposition 1; arXiv 2108.01661",
    blind="directions of small variance: each direction counts with its standard deviation",
)
ANGULAR = declare(
    angular_shape,
    _angles,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="angular shape distance",
    family="procrustes",
    direction="distance",
    low=0.0,
    high=math.pi / 2,
    symmetric=True,
    least=3,
    cost="n d1 d2 + d1 d2 min(d1, d2), widths above n counting as n",
    reference="arXiv 2110.14739, proposition 1",
    blind="directions of small variance: each direction counts with its standard deviation",
)
MATCHING = declare(
    permutation_matching,
    Matching,
    invariances=("shift", "scale", "permutation", "feature_scale"),
    title="permutation matching",
    family="procrustes",
    direction="similarity",
    low=-1.0,
    high=1.0,
    symmetric=True,
    least=3,
    cost="n d1 d2 + d1 d2 max(d1, d2)",
    reference="arXiv 1511.07543, section 3",
    blind="information that is spread over several features, and the features that find no partner",
)
