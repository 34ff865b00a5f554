"""Centred kernel alignment, debiased and biased, and its permutation null on a grid.

With centred features X (n, d1) and Y (n, d2), k_i = |x_i|^2 and l_i = |y_i|^2, the unbiased estimator of HSIC
of Song et al. (2012, equation 5) for linear kernels is, exactly,

    n (n - 3) HSIC = |X'Y|_F^2 - n / (n - 2) sum_i k_i l_i + (sum_i k_i) (sum_i l_i) / ((n - 1)(n - 2)),

because with a zeroed diagonal the row sums of K are -k. The debiased CKA is the ratio of such estimators
(arXiv 2010.15327, equation 3). It may be negative, and it is never clamped. For any other kernel it is the
cosine between U-centred kernel matrices, which for the linear kernel is the same number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens.measures.arrays import Array, centred, checked, namespace, norm, rescaled, same_rows
from featlens.measures.choices import one_of, positive
from featlens.measures.declare import Alignment, Method, declare, evaluate
from featlens.measures.kernels import doubly_centred, rbf, u_centred

__all__ = ["Grid", "KernelCKA", "LinearCKA", "cka", "cka_from_kernels", "cka_grid", "hsic_debiased"]

Estimator = Literal["debiased", "biased"]
ESTIMATORS = ("debiased", "biased")
KERNELS = ("linear", "rbf")
ROUNDING = 1e-12
"""A self-similarity below this fraction of its uncorrected value is rounding error, not a signal."""
ASYMMETRY = 1e-5
"""Largest difference of k_ij and k_ji as a fraction of the largest entry; float32 leaves so much."""


def _pair_hsic(x: Array, y: Array, estimator: Estimator) -> float:
    xp = namespace(x)
    n, width_x, width_y = x.shape[0], x.shape[1], y.shape[1]
    if n * (width_x + width_y) < width_x * width_y:
        cross = float(xp.sum(xp.matmul(x, x.T) * xp.matmul(y, y.T)))
    else:
        cross = float(xp.sum(xp.matmul(x.T, y) ** 2))
    if estimator == "biased":
        return cross / float((n - 1) ** 2)
    k, m = xp.sum(x * x, axis=1), xp.sum(y * y, axis=1)
    value = float(_debias(cross, float(xp.sum(k * m)), float(xp.sum(k)) * float(xp.sum(m)), n))
    # Samples at equal distances from one another (one-hot rows) have no self-similarity but rounding errors.
    return 0.0 if x is y and value * n * (n - 3) <= ROUNDING * cross else value


def _debias(cross: Any, diagonal: Any, traces: Any, n: int) -> Any:
    """Formula of the module's docstring; scalars or arrays of them."""
    return (cross - n / (n - 2) * diagonal + traces / ((n - 1) * (n - 2))) / (n * (n - 3))


def hsic_debiased(x: Array, y: Array) -> float:
    """Unbiased estimate of HSIC with linear kernels (Song et al. 2012, equation 5).

    ``x`` (n, d1), ``y`` (n, d2), n >= 4. Unlike in :func:`cka` the scale of the features matters.
    """
    namespace(x, y, measure="hsic_debiased")
    a, b = (centred(checked(side, name, 4, "hsic_debiased")) for side, name in ((x, "x"), (y, "y")))
    same_rows(a, b, "hsic_debiased")
    return _pair_hsic(a, b, "debiased")


@dataclass(frozen=True)
class LinearCKA:
    """CKA with the linear kernel, through whichever of features and Gram matrices is cheaper."""

    estimator: Estimator = "debiased"
    kernel: str = "linear"
    bandwidth: float = 1.0

    @property
    def least(self) -> int:
        """Smallest number of samples."""
        return 4 if self.estimator == "debiased" else 2

    def prepare(self, x: Array) -> tuple[Array, float]:
        """Centred features and their self-similarity."""
        x = rescaled(centred(x))
        return x, _pair_hsic(x, x, self.estimator)

    def combine(self, a: tuple[Array, float], b: tuple[Array, float]) -> float:
        """Ratio of HSIC to both self-similarities."""
        return float(_ratio(_pair_hsic(a[0], b[0], self.estimator), a[1], b[1]))

    def permute(self, state: tuple[Array, float], order: NDArray[np.int64]) -> tuple[Array, float]:
        """Rows reordered."""
        xp = namespace(state[0])
        return xp.take(state[0], xp.asarray(order), axis=0), state[1]


@dataclass(frozen=True)
class KernelCKA(Alignment):
    """CKA as the cosine between centred kernel matrices."""

    estimator: Estimator = "debiased"
    kernel: str = "rbf"
    bandwidth: float = 1.0

    @property
    def least(self) -> int:
        """Smallest number of samples."""
        return 4 if self.estimator == "debiased" else 2

    def matrix(self, x: Array) -> Array:
        """U-centred kernel matrix, or the doubly centred one if biased."""
        if self.kernel == "linear":
            x = rescaled(centred(x))
            return self.centre(namespace(x).matmul(x, x.T))
        return self.centre(rbf(x, self.bandwidth))

    def centre(self, kernel: Array) -> Array:
        """A kernel matrix (n, n) as the estimator wants it."""
        return (u_centred if self.estimator == "debiased" else doubly_centred)(kernel)


def _estimator(name: Any, measure: str = "cka") -> Estimator:
    return "biased" if one_of(name, ESTIMATORS, measure, "estimator") == "biased" else "debiased"


def _method(estimator: Any = "debiased", kernel: Any = "linear", bandwidth: Any = 1.0) -> Method:
    told = _estimator(estimator)
    width = positive(bandwidth, "cka", "bandwidth")
    if one_of(kernel, KERNELS, "cka", "kernel") == "rbf":
        return KernelCKA(told, "rbf", width)
    if width != 1:
        raise UsageError(
            f"cka: the linear kernel has no bandwidth, got {bandwidth!r}; leave it out or use kernel='rbf'"
        )
    return LinearCKA(told)


def cka(
    x: Array,
    y: Array,
    estimator: Estimator = "debiased",
    kernel: Literal["linear", "rbf"] = "linear",
    bandwidth: float = 1.0,
) -> float:
    """CKA of two feature sets of the same samples.

    Direction: similarity. Range: -1 to 1 debiased, never clamped; 0 to 1 biased. Invariant to shifts,
    orthogonal maps and isotropic scaling of either side, with either kernel.

    Parameters
    ----------
    x, y
        (n, d1) and (n, d2), numpy or torch, same samples in the same order; n >= 4 (2 if biased).
    estimator
        ``"debiased"``, or ``"biased"``, which tends to 1 for d >> n whatever the features.
    kernel
        ``"linear"``, or ``"rbf"``: exp(-d^2 / (2 s^2)).
    bandwidth
        For ``"rbf"``: s as a multiple of the median of the non-zero distances of that side. A large one gives
        the value of the linear kernel.

    Returns
    -------
    float
        NaN if either side has no self-similarity: constant features, or, debiased, samples all equally far
        apart.

    References
    ----------
    arXiv 1905.00414, equation 1; arXiv 2010.15327, equation 3.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> round(cka(x, 3 * x[:, ::-1] + 1), 6)
    1.0
    """
    return evaluate(CKA, x, y, estimator=estimator, kernel=kernel, bandwidth=bandwidth)


def cka_from_kernels(k: Array, l: Array, estimator: Estimator = "debiased") -> float:  # noqa: E741
    """CKA of two kernel matrices of the same samples, whatever the kernels.

    Parameters
    ----------
    k, l
        (n, n) each, symmetric and finite; centred or not. n >= 4 (2 if biased). Debiased, the diagonals are
        not looked at.
    estimator
        ``"debiased"`` or ``"biased"``.

    Returns
    -------
    float
        NaN if either kernel is constant off the diagonal (debiased), or constant (biased).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(50, 8))
    >>> bool(np.isclose(cka_from_kernels(x @ x.T, (x @ x.T) ** 2), cka_from_kernels((x @ x.T) ** 2, x @ x.T)))
    True
    """
    namespace(k, l, measure="cka_from_kernels")
    method = KernelCKA(_estimator(estimator, "cka_from_kernels"), "given")
    a, b = (_checked_kernel(side, name, method.least) for side, name in ((k, "k"), (l, "l")))
    same_rows(a, b, "cka_from_kernels")
    states = []
    for side in (a, b):
        centre = method.centre(side)
        length = norm(centre)
        states.append(centre / (length if length > 0 else math.nan))
    return method.combine(*states)


def _checked_kernel(k: Array, name: str, least: int) -> Array:
    matrix = checked(k, name, least, "cka_from_kernels")
    if matrix.shape[0] != matrix.shape[1]:
        raise UsageError(
            f"cka_from_kernels: {name} must be a kernel matrix (n, n), got shape {tuple(matrix.shape)}; "
            "for features use cka"
        )
    xp = namespace(matrix)
    matrix = rescaled(matrix)
    apart = float(xp.max(xp.abs(matrix - matrix.T)))
    if apart > ASYMMETRY:
        raise UsageError(
            f"cka_from_kernels: {name} is not symmetric, by {apart:.2g} of its largest entry; "
            "symmetrise it, (k + k.T) / 2, if that is what is meant"
        )
    return matrix


CKA = declare(
    cka,
    _method,
    invariances=("shift", "scale", "permutation", "orthogonal"),
    title="debiased linear CKA",
    family="cka",
    direction="similarity",
    low=-1.0,
    high=1.0,
    symmetric=True,
    least=4,
    cost="n d1 d2 + n d1^2 + n d2^2, or n^2 (d1 + d2)",
    reference="arXiv 1905.00414, equation 1; arXiv 2010.15327, equation 3",
    blind="directions of small variance: each direction counts with its variance squared",
)


def _ratio(cross: Any, self_x: Any, self_y: Any) -> Any:
    """Ratio cross / sqrt(self_x * self_y); NaN where a self term is not positive (constant features)."""
    cross, product = np.asarray(cross, dtype=np.float64), np.asarray(self_x) * np.asarray(self_y)
    defined = (np.asarray(self_x) > 0) & (np.asarray(self_y) > 0)
    return np.where(defined, cross / np.sqrt(np.where(defined, product, 1.0)), np.nan)


class Grid(NamedTuple):
    """CKA of every site of A with every site of B, and under row permutations of B."""

    value: NDArray[np.float64]
    """(sites of A, sites of B)."""
    null: NDArray[np.float64]
    """(permutations, sites of A, sites of B)."""


def cka_grid(
    a: Sequence[NDArray[Any]],
    b: Sequence[NDArray[Any]],
    permutations: int = 0,
    seed: int = 0,
    names: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Grid:
    """Debiased linear CKA of all pairs of two lists of features, with a permutation null.

    Parameters
    ----------
    a, b
        Lists of (n, d) numpy arrays over the same n samples; widths may differ.
    permutations
        Number of random permutations of the rows of B; the same ones serve every pair, so the largest null
        value over the grid controls the family-wise error.
    seed
        Seed of the permutations.
    names
        What to call the sites of A and of B in errors; their positions by default.

    Notes
    -----
    Everything reduces to |X'PY|_F^2 and sum k_i l_p(i). The first is computed either between features
    (n sum(d_A) sum(d_B) products) or between Gram matrices (n^2 S_A S_B), whichever is cheaper.
    """
    if not len(a) or not len(b):
        raise UsageError(
            f"cka_grid: expected features on both sides, got {len(a)} sites of A and {len(b)} of B"
        )
    called = (range(len(a)), range(len(b))) if names is None else names
    left = [
        rescaled(centred(checked(x, f"site {i!r} of A", 4, "cka"))) for i, x in zip(called[0], a, strict=True)
    ]
    right = [
        rescaled(centred(checked(y, f"site {i!r} of B", 4, "cka"))) for i, y in zip(called[1], b, strict=True)
    ]
    for x in (*left, *right):
        same_rows(left[0], x, "cka_grid")
    n = len(left[0])
    rng = np.random.default_rng(seed)
    orders = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(permutations))])
    width_a, width_b = (sum(x.shape[1] for x in side) for side in (left, right))
    gram_cost = n * n * len(left) * len(right)
    products = _gram_products if gram_cost < n * width_a * width_b and n <= 2048 else _feature_products
    cross = products(left, right, orders)
    k, m = (np.stack([(x * x).sum(1) for x in side]) for side in (left, right))
    diagonal = np.stack([k @ m[:, order].T for order in orders])
    traces = k.sum(1)[:, None] * m.sum(1)[None, :]
    hsic = _debias(cross, diagonal, traces, n)
    self_a = np.array([_pair_hsic(x, x, "debiased") for x in left])
    self_b = np.array([_pair_hsic(y, y, "debiased") for y in right])
    values = _ratio(hsic, self_a[:, None], self_b[None, :])
    return Grid(values[0], values[1:])


def _feature_products(
    left: list[NDArray[Any]], right: list[NDArray[Any]], orders: NDArray[np.int64]
) -> NDArray[np.float64]:
    """|X'PY|_F^2 of all pairs and orders through one matrix product of all features at once."""
    starts_a = np.cumsum([0, *(x.shape[1] for x in left[:-1])])
    starts_b = np.cumsum([0, *(y.shape[1] for y in right[:-1])])
    x_all, y_all = np.concatenate(left, axis=1).T, np.concatenate(right, axis=1)
    out = np.empty((len(orders), len(left), len(right)))
    for index, order in enumerate(orders):
        squares = (x_all @ y_all[order]) ** 2
        out[index] = np.add.reduceat(np.add.reduceat(squares, starts_a, axis=0), starts_b, axis=1)
    return out


def _gram_products(
    left: list[NDArray[Any]], right: list[NDArray[Any]], orders: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The same through Gram matrices: <XX', P YY' P'>; permuting a Gram matrix needs no new product."""
    n = len(left[0])
    grams_a = np.stack([(x @ x.T).ravel() for x in left])
    grams_b = [y @ y.T for y in right]
    out = np.empty((len(orders), len(left), len(right)))
    shuffled = np.empty((len(right), n * n))
    for index, order in enumerate(orders):
        for row, gram in zip(shuffled, grams_b, strict=True):
            np.take(np.take(gram, order, axis=0), order, axis=1, out=row.reshape(n, n))
        out[index] = grams_a @ shuffled.T
    return out
