"""Centred kernel alignment, debiased and biased.

With centred features X (n, d1) and Y (n, d2), k_i = |x_i|^2 and l_i = |y_i|^2, the unbiased estimator of HSIC
of Song et al. (2012, equation 5) for linear kernels is, exactly,

    n (n - 3) HSIC = |X'Y|_F^2 - n / (n - 2) sum_i k_i l_i + (sum_i k_i) (sum_i l_i) / ((n - 1)(n - 2)),

because with a zeroed diagonal the row sums of K are -k. The debiased CKA is the ratio of such estimators
(arXiv 2010.15327, equation 3). It may be negative, and it is never clamped. For any other kernel it is the
cosine between U-centred kernel matrices, which for the linear kernel is the same number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens.measures.arrays import Array, centred, checked, namespace, norm, rescaled, same_rows, take
from featlens.measures.choices import one_of, positive
from featlens.measures.declare import Alignment, Method, declare, evaluate
from featlens.measures.kernels import doubly_centred, rbf, u_centred

__all__ = ["KernelCKA", "LinearCKA", "cka", "cka_from_kernels", "hsic_debiased"]

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
        return take(state[0], order), state[1]


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
