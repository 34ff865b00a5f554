"""How well a ridge regression predicts one feature set from the other, on held-out samples.

For each fold the features of x are standardised and those of y centred with the training rows alone. With X =
U diag(s) V' of the n training rows, f_i = s_i^2 / (s_i^2 + p) for the penalty p, and a free intercept, the
generalised cross-validation error of the training rows is, up to a factor,

    |Y - U diag(f) U'Y|_F^2 / (n - 1 - sum f)^2,

and the penalty with the smallest one is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from featlens.measures.arrays import Array, centred, namespace, rescaled, take
from featlens.measures.choices import whole
from featlens.measures.declare import Method, declare, evaluate
from featlens.measures.linear import CONSTANT, column_norms, number, rank, unit_columns

__all__ = ["RIDGES", "fold_rows", "linear_predictivity"]

RIDGES = tuple(float(ridge) for ridge in np.logspace(4, -8, 25))
"""Penalties tried, as shares of the mean non-zero eigenvalue of X'X; of equals the strongest is taken."""


def fold_rows(n: int, folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training rows and held-out rows of every fold; they depend on nothing else.

    >>> [held.tolist() for _, held in fold_rows(5, 2, seed=0)]
    [[2, 4, 3], [0, 1]]
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(n), folds)
    return [(np.concatenate(parts[:k] + parts[k + 1 :]), part) for k, part in enumerate(parts)]


class Predictor(NamedTuple):
    """Decomposition of the standardised training rows of x in one fold."""

    train: NDArray[np.int64]
    """Row numbers."""
    held: NDArray[np.int64]
    u: Array
    """(training rows, k), orthonormal."""
    values: Array
    """Singular values (k,)."""
    scores: Array
    """Held-out rows times V, (held-out rows, k)."""


@dataclass
class Side:
    """Rows of one side; the folds are decomposed once it serves as predictor."""

    rows: Array
    folds: int
    seed: int

    @cached_property
    def predictors(self) -> list[Predictor]:
        """One per fold."""
        cuts = fold_rows(self.rows.shape[0], self.folds, self.seed)
        return [_predictor(self.rows, train, held) for train, held in cuts]


def _predictor(rows: Array, train: NDArray[np.int64], held: NDArray[np.int64]) -> Predictor:
    xp = namespace(rows)
    x, new = _split(rows, train, held)
    norms = column_norms(x, rows)
    u, values, vt = xp.linalg.svd(unit_columns(x, norms), full_matrices=False)
    # Centred rows span one dimension less than there are rows; what an SVD finds there is rounding errors.
    kept = min(rank(values, CONSTANT), x.shape[0] - 1)
    scores = xp.matmul(unit_columns(new, norms), vt[:kept, :].T)
    return Predictor(train, held, u[:, :kept], values[:kept], scores)


def _split(rows: Array, train: NDArray[np.int64], held: NDArray[np.int64]) -> tuple[Array, Array]:
    """Training and held-out rows minus the mean of the training rows."""
    xp = namespace(rows)
    inside, outside = take(rows, train), take(rows, held)
    first = inside[:1, :]
    inside, outside = inside - first, outside - first
    mean = xp.mean(inside, axis=0, keepdims=True)
    return inside - mean, outside - mean


@dataclass(frozen=True)
class Predictivity:
    """Cross-validated ridge regression of y on x."""

    folds: int = 5
    ridge: float | None = None
    seed: int = 0

    @property
    def least(self) -> int:
        """Smallest number of samples: no empty fold, and three training rows."""
        return max(self.folds, 6)

    def prepare(self, x: Array) -> Side:
        """Rows, centred and of largest entry 1."""
        xp = namespace(x)
        moved = centred(x)
        varies = column_norms(moved, x) > 0
        return Side(rescaled(xp.where(varies, moved, xp.zeros_like(moved))), self.folds, self.seed)

    def combine(self, a: Side, b: Side) -> float:
        """R2 of y from x, pooled over held-out rows and features of y."""
        xp = namespace(a.rows, b.rows)
        if not bool(xp.any(a.rows != 0)):
            return math.nan
        error, total = 0.0, 0.0
        for fold in a.predictors:
            y, wanted = _split(b.rows, fold.train, fold.held)
            guess = xp.matmul(fold.scores, self._coefficients(fold, y))
            error += float(xp.sum((wanted - guess) ** 2))
            total += float(xp.sum(wanted**2))
        return 1 - error / total if total > 0 else math.nan

    def permute(self, state: Side, order: NDArray[np.int64]) -> Side:
        """Rows reordered; folds stay where they are."""
        return Side(take(state.rows, order), state.folds, state.seed)

    def _coefficients(self, fold: Predictor, y: Array) -> Array:
        """Coefficients (k, d2) of the scores."""
        xp = namespace(y)
        products = xp.matmul(fold.u.T, y)
        squares = fold.values**2
        kept = squares.shape[0]
        level = float(xp.sum(squares)) / max(kept, 1)
        if self.ridge is None:
            free = y.shape[0] - 1 - kept
            # What is left outside a span that is everything is rounding errors.
            outside = float(xp.sum((y - xp.matmul(fold.u, products)) ** 2)) if free else 0.0
            penalty = level * _chosen(squares / (level or 1.0), xp.sum(products**2, axis=1), outside, free)
        else:
            penalty = level * self.ridge
        return (fold.values / (squares + penalty))[:, None] * products


def _chosen(squares: Array, powers: Array, outside: float, free: int) -> float:
    """The ridge with the smallest generalised cross-validation error.

    ``squares`` (k,) are the eigenvalues over their mean, ``powers`` (k,) the squared products of y with the
    directions, ``outside`` what y has outside their span of ``free`` dimensions less than everything.
    """
    xp = namespace(squares)
    errors = []
    for ridge in RIDGES:
        rest = ridge / (squares + ridge)
        errors.append((outside + float(xp.sum(rest**2 * powers))) / (free + float(xp.sum(rest))) ** 2)
    return RIDGES[int(np.argmin(errors))]


def linear_predictivity(
    x: Array, y: Array, folds: int = 5, ridge: float | None = None, seed: int = 0
) -> float:
    """R2 of predicting y from x by ridge regression on held-out samples.

    Direction: similarity, not symmetric; the other direction is ``linear_predictivity(y, x)``. Range: at most
    1, and negative where the prediction is worse than the mean of the training rows. R2 is pooled: 1 minus
    the squared error over the squared distance from the training mean, both summed over all held-out rows and
    all features of y, so that a feature of y counts with its variance. Features of x are standardised.
    Nothing of a held-out row is used for its prediction. Invariant to shifts, to the order of features and to
    isotropic scaling of either side, to a scale of each feature of x, and to orthogonal maps of y.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 6 and n >= folds. A sample
        that is there twice may be predicted from itself.
    folds
        Number of folds, at least 2. Rows are assigned to them at random from the seed and n alone.
    ridge
        Penalty as a share of the mean non-zero eigenvalue of X'X of the training rows; None chooses for every
        fold among :data:`RIDGES` by generalised cross-validation inside the training rows.
    seed
        Seed of the folds.

    Returns
    -------
    float
        NaN if either side is constant.

    References
    ----------
    arXiv 1905.00414, table 1 (R2 of linear regression), here cross-validated and with a ridge; Golub, Heath
    and Wahba (1979), Technometrics 21, 215-223 (generalised cross-validation).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(linear_predictivity(x, x[:, :2]), 6), linear_predictivity(x[:, :2], x) < 0.7
    (1.0, True)
    """
    return evaluate(PREDICTIVITY, x, y, folds=folds, ridge=ridge, seed=seed)


def _method(folds: int = 5, ridge: float | None = None, seed: int = 0) -> Method:
    strength = None if ridge is None else number(ridge, "ridge", "linear_predictivity", 0)
    name = "linear_predictivity"
    return Predictivity(whole(folds, 2, name, "folds"), strength, whole(seed, 0, name, "seed"))


PREDICTIVITY = declare(
    linear_predictivity,
    _method,
    invariances=("shift", "scale", "permutation"),
    title="linear predictivity (x to y)",
    family="predictivity",
    direction="similarity",
    low=-math.inf,
    high=1.0,
    itself=math.nan,
    symmetric=False,
    least=6,
    cost="folds (n d1 d2), after folds (n d1 min(n, d1)) once per x",
    reference="arXiv 1905.00414, table 1; Technometrics 21, 215 (1979)",
    blind="directions of y of small variance, and all that only a nonlinear map would find",
)
