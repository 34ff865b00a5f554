"""Ridge regression on one-hot labels in closed form, for all penalties from one factorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RidgePath", "fit_path", "one_hot"]

Array = NDArray[Any]


def one_hot(codes: Array, classes: int) -> Array:
    """(n,) class numbers -> (n, classes) float64."""
    return np.asarray(np.eye(classes)[codes])


@dataclass(frozen=True)
class RidgePath:
    """Singular value decomposition of standardised features, ready for any penalty and any targets.

    Minimises ``|Y - X W - b|^2 + penalty * n * |W|^2`` over W and the unpenalised b.
    """

    mean: Array
    scale: Array
    left: Array
    values: Array
    right: Array

    def coefficients(self, targets: Array, penalty: float) -> tuple[Array, Array]:
        """Weights (d, k) in the space of the raw features and intercepts (k,), for targets (n, k)."""
        centre = targets.mean(axis=0)
        shrunk = self.values / (self.values**2 + penalty * len(targets))
        weights = self.right.T @ (shrunk[:, None] * (self.left.T @ (targets - centre)))
        weights = weights / self.scale[:, None]
        return weights, centre - self.mean @ weights


def fit_path(features: Array) -> RidgePath:
    """Standardise (n, d) features (constant ones stay zero) and factorise them."""
    x = np.asarray(features, dtype=np.float64)
    mean = x.mean(axis=0)
    spread = x.std(axis=0)
    # A feature whose spread is rounding noise of its mean is constant: it must not be blown up.
    scale = np.where(spread > 1e-10 * np.maximum(np.abs(mean), 1e-300), spread, 1.0)
    scale = np.where(scale > 0, scale, 1.0)
    centred = np.where(spread > 1e-10 * np.abs(mean), x - mean, 0.0)
    left, values, right = np.linalg.svd(centred / scale, full_matrices=False)
    return RidgePath(mean, scale, left, values, right)
