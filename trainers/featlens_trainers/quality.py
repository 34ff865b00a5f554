"""Distances between sets of images in the features of a classifier: Frechet distance and KID."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError

__all__ = ["Quality", "frechet_distance", "kernel_distance", "quality"]

Features = NDArray[Any]


def frechet_distance(x: Features, y: Features) -> float:
    """Squared Frechet distance of Gaussians fitted to two feature sets (arXiv 1706.08500, equation 6).

    ``x`` (n, d), ``y`` (m, d), at least two rows each. Computed in float64; the trace of the matrix root
    comes from the eigenvalues of ``S_x^(1/2) S_y S_x^(1/2)``, which stays real for singular covariances.
    Biased upwards for small n: compare only values of equal n and m.
    """
    x, y = _checked(x, y)
    root = _root(np.cov(x, rowvar=False))
    other = np.atleast_2d(np.cov(y, rowvar=False))
    cross = np.linalg.eigvalsh(root @ other @ root)
    gap = x.mean(0) - y.mean(0)
    trace = np.trace(root @ root) + np.trace(other) - 2.0 * np.sqrt(np.clip(cross, 0.0, None)).sum()
    return float(gap @ gap + trace)


def _root(covariance: Features) -> Features:
    values, vectors = np.linalg.eigh(np.atleast_2d(covariance))
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def kernel_distance(x: Features, y: Features) -> float:
    """Unbiased squared MMD with the kernel ``(x.y / d + 1)^3`` (KID, arXiv 1801.01401); may be negative."""
    x, y = _checked(x, y)
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = ((a @ b.T / d + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2.0 * xy.mean())


def _checked(x: Features, y: Features) -> tuple[Features, Features]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise UsageError(
            f"distance: expected features (n, d) and (m, d) with n, m >= 2, got {x.shape} and {y.shape}"
        )
    for name, array in (("first", x), ("second", y)):
        if not np.isfinite(array).all():
            row = int(np.argwhere(~np.isfinite(array).all(axis=1))[0, 0])
            raise UsageError(f"distance: row {row} of the {name} feature set holds NaN or infinity")
    return x, y


@dataclass(frozen=True)
class Quality:
    """Distances of generated to held-out images, and the numbers of images they rest on."""

    frechet: float
    kid: float
    generated: int
    reference: int

    def to_dict(self) -> dict[str, Any]:
        """Plain dict."""
        return asdict(self)


def quality(generated: Features, reference: Features) -> Quality:
    """Both distances of features (n, d) of generated images to features (m, d) of held-out images."""
    return Quality(
        frechet_distance(generated, reference),
        kernel_distance(generated, reference),
        len(generated),
        len(reference),
    )
