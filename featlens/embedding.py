"""Two feature sets of the same samples in one plane: reduced, aligned by rotation, then PCA or UMAP of both.

The mathematics, and what such a picture cannot say, is in docs/notes/embedding.md.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.measures.arrays import centred, checked, norm, rescaled, same_rows
from featlens.seeds import derive

__all__ = ["COMPONENTS", "LEAST_UMAP", "METHODS", "Embedding", "choose_rows", "embed_pair"]

METHODS = ("umap", "pca")
CACHE = "could not write what numba compiles"
COMPONENTS = 50
"""Principal components of each side that are kept at most."""
LEAST_PCA = 4
LEAST_UMAP = 15
"""Below this many samples every point is a neighbour of every other, and UMAP shows nothing."""
NEIGHBOURS = 15
PERMUTATIONS = 20


@dataclass(frozen=True)
class Embedding:
    """Both feature sets as points in one plane, with what was lost on the way."""

    coordinates: NDArray[np.float64]
    """(side, sample, axis) of shape (2, n, 2); side 0 is x, side 1 is y. PCA: in units of the root mean
    square distance of a side's samples from their mean; UMAP: without unit."""
    rows: NDArray[np.int64]
    """(n,) which rows of the features are shown, increasing."""
    labels: NDArray[np.int64] | None
    """(n,) labels of these rows."""
    method: Literal["umap", "pca"]
    components: tuple[int, int]
    """Principal components kept of x and of y."""
    explained: tuple[float, float]
    """Share of the variance of x and of y in these components."""
    shown: float
    """Share of the variance of the aligned components that the two axes show; NaN for UMAP."""
    residual: float
    """Share of the variance of both sides that no rotation brings to agreement: 0 if they agree up to
    rotation and scale, at most 1."""
    residual_null: float
    """Mean of the same where the samples of y are permuted: what unrelated features would leave."""


def choose_rows(total: int, rows: int, seed: int = 0) -> NDArray[np.int64]:
    """Which of ``total`` rows are shown, increasing: all, or a random subset of ``rows``.

    >>> choose_rows(4, 10).tolist()
    [0, 1, 2, 3]
    """
    if rows < 1:
        raise UsageError(f"embedding: rows must be 1 or more, got {rows}")
    if total <= rows:
        return np.arange(total)
    chosen = np.random.default_rng(derive(seed, "embedding")).permutation(total)[:rows]
    return np.sort(chosen)


def embed_pair(
    x: Any,
    y: Any,
    labels: Sequence[int] | NDArray[Any] | None = None,
    method: str = "umap",
    rows: int = 2000,
    seed: int = 0,
) -> Embedding:
    """Both feature sets in one plane, y turned onto x.

    Each side is centred, reduced to its leading principal components (at most 50) and divided by its norm; y
    is turned onto x by the orthogonal map that leaves the least (orthogonal Procrustes, the narrower side
    padded with zeros); then one PCA, or one UMAP, is fitted to all 2n rows. So distances between points of
    different sides mean something, as far as ``residual`` is well below ``residual_null``.

    Parameters
    ----------
    x, y
        Features (n, d1) and (n, d2) of the same samples, float; numpy.
    labels
        (n,) integers to colour by, carried along.
    method
        ``"umap"`` (15 samples or more) or ``"pca"`` (4 or more).
    rows
        A random subset of this many samples is shown if there are more.
    seed
        Of the subset and of UMAP, which then runs in one thread: equal seeds give equal pictures.

    References
    ----------
    Schoenemann (1966), Psychometrika 31, equation 1.7 (the rotation); arXiv 1802.03426 (UMAP).

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> turned = 5 * x[:, [2, 0, 1]] + 1
    >>> embedding = embed_pair(x, turned, method="pca")
    >>> embedding.coordinates.shape, round(embedding.residual, 6)
    ((2, 40, 2), 0.0)
    >>> bool(np.allclose(*embedding.coordinates))
    True
    """
    if method not in METHODS:
        raise UsageError(f"embedding: unknown method {method!r}: {choices_hint(str(method), METHODS)}")
    a, b = (checked(np.asarray(side), name, LEAST_PCA, "embedding") for side, name in ((x, "x"), (y, "y")))
    same_rows(a, b, "embedding")
    if labels is not None and len(labels) != len(a):
        raise UsageError(f"embedding: expected {len(a)} labels, one a row, got {len(labels)}")
    chosen = choose_rows(len(a), rows, seed)
    if method == "umap" and len(chosen) < LEAST_UMAP:
        raise UsageError(
            f"embedding: UMAP needs {LEAST_UMAP} samples or more, there are {len(chosen)}; use method='pca'"
        )
    told = None if labels is None else np.asarray(labels, dtype=np.int64)[chosen]
    return _embedded(a[chosen], b[chosen], told, chosen, method, seed)


def _embedded(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    labels: NDArray[np.int64] | None,
    rows: NDArray[np.int64],
    method: str,
    seed: int,
) -> Embedding:
    """The embedding of checked rows and their labels."""
    (a, part_a), (b, part_b) = _reduced(a, "x"), _reduced(b, "y")
    widths = (a.shape[1], b.shape[1])
    a, b = (np.pad(side, ((0, 0), (0, max(widths) - side.shape[1]))) for side in (a, b))
    residual, aligned = _align(a, b)
    rng = np.random.default_rng(derive(seed, "embedding", "null"))
    null = float(np.mean([_align(a, b[rng.permutation(len(b))])[0] for _ in range(PERMUTATIONS)]))
    stacked = np.concatenate([a, aligned])
    stacked *= np.sqrt(len(rows))
    points, shown = _pca(stacked) if method == "pca" else (_umap(stacked, seed), float("nan"))
    return Embedding(
        coordinates=points.reshape(2, len(rows), 2),
        rows=rows,
        labels=labels,
        method="pca" if method == "pca" else "umap",
        components=widths,
        explained=(part_a, part_b),
        shown=shown,
        residual=residual,
        residual_null=null,
    )


def _reduced(x: NDArray[np.float64], name: str) -> tuple[NDArray[np.float64], float]:
    """Leading principal components (n, k) of Frobenius norm 1, and their share of the variance."""
    x = centred(rescaled(x))
    length = norm(x)
    if not length > 0:
        raise UsageError(f"embedding: {name} does not vary over the samples, so there is nothing to show")
    x = x / length
    scores, values = _scores(x, min(COMPONENTS, len(x) - 1, x.shape[1]))
    # Of a total of 1.
    share = float(min(values.sum(), 1.0))
    return scores / norm(scores), share


def _scores(x: NDArray[np.float64], k: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First k principal components (n, k) of centred x, largest first, and their sums of squares."""
    wide = x.shape[1] > len(x)
    values, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    values, vectors = values[::-1][:k], vectors[:, ::-1][:, :k]
    # Rounding leaves eigenvalues of about 1e-16 of the largest where there is no variance.
    real = values > 1e-12 * values[0]
    values, vectors = values[real], vectors[:, real]
    scores = vectors * np.sqrt(values) if wide else x @ vectors
    largest = np.abs(scores).argmax(axis=0)
    return scores * np.sign(scores[largest, np.arange(scores.shape[1])]), values


def _align(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Share of the squares of both that remains, and b turned onto a; both (n, k) of norm 1."""
    left, values, right = np.linalg.svd(b.T @ a)
    return float(max(1.0 - values.sum(), 0.0)), b @ (left @ right)


def _pca(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Two leading principal components (rows, 2) and their share of the variance."""
    points = centred(points)
    scores, _ = _scores(points, min(2, points.shape[1]))
    shown = float(min((scores**2).sum() / (points**2).sum(), 1.0))
    return np.pad(scores, ((0, 0), (0, 2 - scores.shape[1]))), shown


def _umap(points: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """UMAP of the rows (rows, 2)."""
    with _quiet():
        try:
            import umap  # type: ignore[import-untyped,unused-ignore]
        except ImportError as error:
            raise FeatlensError(
                f"embedding: UMAP needs the package umap-learn ({error}); install it or use method='pca'"
            ) from None
        except OSError as error:
            raise FeatlensError(f"embedding: UMAP {CACHE} ({error}); use method='pca'") from None
        from threadpoolctl import threadpool_limits

        # More than one thread would make the picture depend on chance.
        model = umap.UMAP(
            n_components=2,
            n_neighbors=min(NEIGHBOURS, len(points) - 1),
            random_state=derive(seed, "umap") % 2**32,
            n_jobs=1,
        )
        # numba sets the threads of OpenMP, and with them those of torch, for the whole process.
        try:
            with threadpool_limits(1):
                found: NDArray[np.float64] = np.asarray(model.fit_transform(points), dtype=np.float64)
        except OSError as error:
            raise FeatlensError(f"embedding: UMAP {CACHE} ({error}); use method='pca'") from None
    if not np.isfinite(found).all():
        raise FeatlensError("embedding: UMAP placed some samples nowhere; use method='pca'")
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of umap that concern nothing that was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        warnings.filterwarnings("ignore", "n_jobs value", UserWarning)
        # Two models that share nothing are two clouds.
        warnings.filterwarnings("ignore", "Graph is not fully connected", UserWarning)
        warnings.filterwarnings("ignore", "Spectral initiali[sz]ation failed", UserWarning)
        yield
