"""Measures that come from sums over pairs of samples, and what leaving one sample out does to them.

Let K and L be kernel matrices of two sites, K~ and L~ the same with zero diagonal, c and d their diagonals,
r = K~ 1 and s = L~ 1 their row sums. Every value here needs only

    cross = sum_ij K~_ij L~_ij,   r, s, c, d,

and every leave-one-out value beside these, for the sample p that is left out,

    h_p = sum_q K~_pq L~_pq,   (K~ s)_p,   (L~ r)_p.

"debiased" is the estimator of HSIC of Song et al. (2012, equation 5), "biased" that of Gretton et al. (2005),
"correlation" the covariance of the entries off the diagonal. The value is the ratio of the cross term to the
root of both self terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featlens.measures.declare import Bound

__all__ = ["Form", "Kernel", "form_of", "leave_one_out", "ratio", "similarity"]

Floats = NDArray[np.float64]
Formula = Literal["debiased", "biased", "correlation"]


@dataclass(frozen=True)
class Kernel:
    """Kernel between samples; ``bandwidth`` is a factor on the median distance."""

    kind: Literal["linear", "rbf", "distance"]
    bandwidth: float = 1.0


@dataclass(frozen=True)
class Form:
    """A measure as a kernel and a formula."""

    kernel: Kernel
    formula: Formula
    root: bool = False
    """Whether the measure is the root of the ratio (classical distance correlation)."""

    @property
    def degenerate(self) -> bool:
        """Whether values of unrelated samples shrink as 1 / n; those that are biased do not where d >> n."""
        return self.formula == "debiased" and not self.root


def form_of(bound: Bound) -> Form | None:
    """Form of a measure, None if it has none."""
    options, name = bound.options, bound.measure.name
    if name == "cka" and options.get("kernel") in ("linear", "rbf"):
        kernel = Kernel(options["kernel"])
        if options["kernel"] == "rbf":
            kernel = Kernel("rbf", float(options.get("bandwidth", 1.0)))
        return Form(kernel, options["estimator"])
    if name == "distance_correlation":
        return Form(Kernel("distance"), options["estimator"], root=options["estimator"] == "biased")
    if name == "rsa" and (options["distance"], options["comparison"]) == ("euclidean", "pearson"):
        return Form(Kernel("distance"), "correlation")
    return None


def similarity(formula: Formula, n: Any, cross: Any, sums: Any, products: Any, diagonals: Any = 0.0) -> Any:
    """HSIC or covariance; scalars or arrays that broadcast.

    Parameters
    ----------
    formula
        Which.
    n
        Number of samples.
    cross
        sum K~ L~.
    sums
        Product of the totals of K~ and L~, or of K and L for ``"biased"``.
    products
        sum r s, or the same with the diagonals added to the row sums for ``"biased"``.
    diagonals
        sum c d, for ``"biased"``.
    """
    if formula == "debiased":
        return (cross + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * products) / (n * (n - 3))
    if formula == "biased":
        return (cross + diagonals - 2 / n * products + sums / n**2) / (n - 1) ** 2
    return (cross - sums / (n * (n - 1))) / (n * (n - 1))


def ratio(cross: Any, self_a: Any, self_b: Any) -> Floats:
    """Cross / sqrt(self_a self_b); NaN where a self term is not positive."""
    cross, self_a, self_b = (np.asarray(value, dtype=np.float64) for value in (cross, self_a, self_b))
    defined = (self_a > 0) & (self_b > 0)
    with np.errstate(invalid="ignore"):
        product = np.sqrt(np.where(defined, self_a, 1.0)) * np.sqrt(np.where(defined, self_b, 1.0))
        return np.where(defined, cross / product, np.nan)


def leave_one_out(
    formula: Formula,
    n: int,
    cross: Any,
    totals: tuple[Any, Any],
    products: Any,
    diagonals: Any,
    rows: tuple[Any, Any],
    own: tuple[Any, Any],
    h: Any,
    mixed: Any,
) -> Any:
    """The same of the other n - 1 samples, for each sample left out; all arrays broadcast over the samples.

    Parameters
    ----------
    formula, n, cross, products, diagonals
        As in :func:`similarity`, of all samples.
    totals
        Totals of both matrices: of K~ and L~, or of K and L for ``"biased"``.
    rows
        Row sums of both at the sample left out, with their diagonals for ``"biased"``.
    own
        Diagonal entries c and d of both at that sample (0 unless ``"biased"``).
    h
        sum_q K~_pq L~_pq.
    mixed
        (K~ s)_p + (L~ r)_p with s and r the row sums that are meant above.
    """
    less = n - 1
    left = tuple(total - 2 * row + c for total, row, c in zip(totals, rows, own, strict=True))
    kept = products - rows[0] * rows[1] - mixed + h
    if formula == "biased":
        # Row sums hold the diagonal, so the sums over q of K_pq s_q with q other than p are those of K~.
        return similarity(formula, less, cross - 2 * h, left[0] * left[1], kept, diagonals - own[0] * own[1])
    return similarity(formula, less, cross - 2 * h, left[0] * left[1], kept)
