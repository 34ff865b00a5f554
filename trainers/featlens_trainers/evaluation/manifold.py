"""Neighbours in feature space: precision and recall, density and coverage."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError
from featlens_trainers.evaluation.sets import Features, block_rows, checked

__all__ = ["density_coverage", "neighbour_radii", "precision_recall", "squared_distances"]

Array = NDArray[np.float64]

CANCELLED = 1e-6
"""Squared distances below this share of the squared norms have lost digits and are computed again."""

TIE = 1e-9
"""Relative difference up to which two squared distances count as equal."""


def squared_distances(x: Array, y: Array) -> Array:
    """(n, d), (m, d) float64 -> squared Euclidean distances (n, m), exactly 0 for equal rows.

    A matrix product, but where that cancels digits the difference itself is squared.

    >>> import numpy as np
    >>> squared_distances(np.array([[1e8], [1e8 + 1]]), np.array([[1e8]])).ravel()
    array([0., 1.])
    """
    norms = np.einsum("ij,ij->i", x, x)[:, None] + np.einsum("ij,ij->i", y, y)[None, :]
    out = norms - 2.0 * (x @ y.T)
    rows, columns = np.nonzero(out <= CANCELLED * norms)
    step = block_rows(x.shape[1])
    for start in range(0, len(rows), step):
        i, j = rows[start : start + step], columns[start : start + step]
        gap = x[i] - y[j]
        out[i, j] = np.einsum("ij,ij->i", gap, gap)
    return np.asarray(out)


def _blocks(x: Array, y: Array) -> list[slice]:
    # A block, its norms, and the marks of what cancelled are in memory together.
    step = block_rows(4 * len(y))
    return [slice(start, start + step) for start in range(0, len(x), step)]


def neighbour_radii(x: Features, k: int) -> Array:
    """Squared distance (n,) of every row to its k-th nearest other row of the same set."""
    x = np.asarray(x, dtype=np.float64)
    if not 1 <= k < len(x):
        raise UsageError(
            f"neighbours: expected k from 1 to {len(x) - 1} for {len(x)} images, got {k}; "
            "give more images or a smaller k"
        )
    out = np.empty(len(x))
    for part in _blocks(x, x):
        distances = squared_distances(x[part], x)
        own = np.arange(len(distances))
        distances[own, part.start + own] = math.inf
        out[part] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return out


def _centred(x: Features, y: Features) -> tuple[Array, Array]:
    """Both sets without the mean of the second: distances stay, and fewer digits cancel."""
    x, y = checked(x, y)
    mean = y.mean(0)
    return x - mean, y - mean


def _inside(points: Array, centres: Array, radii: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number of balls (n,) that hold each point, and whether each ball (m,) holds any."""
    held = np.zeros(len(points), dtype=np.int64)
    hit = np.zeros(len(centres), dtype=np.bool_)
    within = radii * (1 + TIE)
    for part in _blocks(points, centres):
        inside = squared_distances(points[part], centres) <= within
        held[part] = inside.sum(1)
        hit |= inside.any(0)
    return held, hit


def precision_recall(generated: Features, reference: Features, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, equations 1 and 2).

    Around every image lies a ball that reaches its k-th nearest neighbour of the same set. Precision: share
    of generated images within any ball of a reference image. Recall: share of reference images within any
    ball of a generated one.

    Parameters
    ----------
    generated, reference
        (n, d) and (m, d) features, more than k rows each.
    k
        Which neighbour a ball reaches.

    Examples
    --------
    >>> import numpy as np
    >>> line = np.arange(8.0)[:, None]
    >>> precision_recall(line[:4] + 0.5, line, k=1)
    (1.0, 0.625)
    """
    x, y = _centred(generated, reference)
    precise, _ = _inside(x, y, neighbour_radii(y, k))
    recalled, _ = _inside(y, x, neighbour_radii(x, k))
    return float((precise > 0).mean()), float((recalled > 0).mean())


def density_coverage(generated: Features, reference: Features, k: int = 5) -> tuple[float, float]:
    """Density and coverage (arXiv 2002.09797, equations 3 and 4).

    Density: number of balls of reference images around a generated image, in units of k; 1 on average for
    equal distributions, and it may exceed 1. Coverage: share of reference balls that hold a generated image.
    Balls belong to reference images alone, so outliers among the generated ones do not count as variety.

    Parameters
    ----------
    generated, reference
        (n, d) and (m, d) features, more than k reference rows.
    k
        Which neighbour a ball reaches.

    Examples
    --------
    >>> import numpy as np
    >>> line = np.arange(8.0)[:, None]
    >>> density_coverage(line[:4] + 0.5, line, k=1)
    (2.0, 0.625)
    """
    x, y = _centred(generated, reference)
    held, hit = _inside(x, y, neighbour_radii(y, k))
    return float(held.mean() / k), float(hit.mean())
