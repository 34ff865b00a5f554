"""Two models in one plane: alignment, reproducibility, and what is refused."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from featlens.embedding import COMPONENTS, choose_rows, embed_pair
from featlens.errors import FeatlensError, UsageError


def turned(x: Any, seed: int = 0) -> Any:
    """The same features, rotated, scaled and shifted."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(x.shape[1], x.shape[1])))
    return 3.5 * x @ rotation + rng.normal(size=x.shape[1])


def stub(monkeypatch: pytest.MonkeyPatch, points: Any = None) -> list[dict[str, Any]]:
    """Puts a UMAP in the place of umap that takes two features; returns the options it was called with."""
    calls: list[dict[str, Any]] = []

    class UMAP:
        def __init__(self, **options: Any) -> None:
            calls.append(options)

        def fit_transform(self, x: Any) -> Any:
            return np.asarray(x[:, :2] if points is None else points, dtype=np.float32)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    return calls


def textbook(x: Any, y: Any) -> tuple[Any, float]:
    """Aligned PCA as a textbook has it: dense SVDs, one step after the other."""

    def scores(z: Any) -> Any:
        u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        return u * s / np.sqrt((s**2).sum())

    a, b = scores(x), scores(y)
    k = max(a.shape[1], b.shape[1])
    a, b = (np.hstack([z, np.zeros((len(z), k - z.shape[1]))]) for z in (a, b))
    u, _, v = np.linalg.svd(b.T @ a)
    b = b @ u @ v
    both = np.vstack([a, b]) * np.sqrt(len(x))
    u, s, _ = np.linalg.svd(both, full_matrices=False)
    return (u * s)[:, :2].reshape(2, len(x), 2), float(((a - b) ** 2).sum() / 2)


# --- PCA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d1", "d2"), [(6, 6), (3, 9), (9, 3), (40, 8)])
def test_it_is_the_textbook(rng: np.random.Generator, d1: int, d2: int) -> None:
    x = rng.normal(size=(30, d1)) * np.arange(1, d1 + 1)
    y = rng.normal(size=(30, d2)) + x[:, :1]
    made = embed_pair(x, y, method="pca")
    points, residual = textbook(x, y)
    # Each axis up to its sign.
    signs = np.sign((points * made.coordinates).sum((0, 1)))
    np.testing.assert_allclose(made.coordinates, points * signs, atol=1e-8)
    assert made.residual == pytest.approx(residual, abs=1e-10)
    assert made.components == (min(d1, 29), min(d2, 29))
    assert made.explained == pytest.approx((1, 1))


@given(n=st.integers(5, 40), d=st.integers(1, 30), seed=st.integers(0, 99))
def test_features_that_agree_up_to_rotation_lie_on_each_other(n: int, d: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(1, 4, d)
    made = embed_pair(x, turned(x, seed), method="pca")
    assert made.residual < 1e-8
    np.testing.assert_allclose(made.coordinates[0], made.coordinates[1], atol=1e-5)
    assert 0 <= made.residual <= made.residual_null + 1e-9


def test_unrelated_features_leave_what_permuted_ones_leave(rng: np.random.Generator) -> None:
    made = embed_pair(rng.normal(size=(400, 6)), rng.normal(size=(400, 6)), method="pca")
    assert made.residual == pytest.approx(made.residual_null, rel=0.1)
    assert 0.5 < made.residual < 1


def test_many_features_are_reduced_and_it_says_to_what(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(120, 80)), rng.normal(size=(120, 200))
    made = embed_pair(x, y, method="pca")
    assert made.components == (COMPONENTS, COMPONENTS)
    for share, z in zip(made.explained, (x, y), strict=True):
        s = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
        assert share == pytest.approx(s[:COMPONENTS].sum() / s.sum())
    assert 0 < made.shown < 1 and made.method == "pca"


def test_a_mean_far_above_the_spread_and_tiny_scales_change_nothing(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 4))
    made = embed_pair(x, y, method="pca")
    for a, b in ((x + 1e4, y - 1e4), (x * 1e-30, y * 1e30)):
        other = embed_pair(a, b, method="pca")
        np.testing.assert_allclose(other.coordinates, made.coordinates, atol=1e-6)


def test_a_single_feature_and_duplicate_features_are_fine(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20, 1))
    made = embed_pair(x, np.hstack([x, x, x]), method="pca")
    assert made.components == (1, 1) and made.residual < 1e-12
    assert np.abs(made.coordinates[:, :, 1]).max() < 1e-9


# --- rows, labels, seeds ------------------------------------------------------------------------------------


def test_a_random_subset_is_the_same_for_the_same_seed(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(90, 4)), rng.normal(size=(90, 4))
    labels = np.arange(90) % 7
    made = embed_pair(x, y, labels, "pca", rows=30, seed=3)
    assert made.rows.tolist() == choose_rows(90, 30, 3).tolist() == sorted(set(made.rows.tolist()))
    assert made.labels is not None and made.labels.tolist() == (made.rows % 7).tolist()
    alone = embed_pair(x[made.rows], y[made.rows], method="pca", seed=3)
    assert np.array_equal(alone.coordinates, made.coordinates) and alone.labels is None
    assert choose_rows(90, 30, 4).tolist() != made.rows.tolist()


def test_an_embedding_is_frozen(rng: np.random.Generator) -> None:
    made = embed_pair(rng.normal(size=(9, 3)), rng.normal(size=(9, 3)), method="pca")
    with pytest.raises(AttributeError):
        made.residual = 0.0  # type: ignore[misc]


# --- UMAP ---------------------------------------------------------------------------------------------------


def test_umap_gets_all_rows_at_once_a_fixed_seed_and_one_thread(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    calls = stub(monkeypatch)
    x = rng.normal(size=(20, 4))
    made = embed_pair(x, turned(x), method="umap", seed=1)
    embed_pair(x, turned(x), method="umap", seed=1)
    embed_pair(x, turned(x), method="umap", seed=2)
    assert made.coordinates.shape == (2, 20, 2) and made.method == "umap" and np.isnan(made.shown)
    np.testing.assert_allclose(made.coordinates[0], made.coordinates[1], atol=1e-6)
    assert calls[0] == calls[1] != calls[2] and calls[0]["n_jobs"] == 1 and calls[0]["n_components"] == 2
    assert 0 <= calls[0]["random_state"] < 2**32


def threads() -> dict[str, int]:
    """Threads of every pool of this process."""
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}


@pytest.mark.slow
def test_umap_itself(rng: np.random.Generator) -> None:
    centres = 20 * rng.normal(size=(3, 8))
    labels = np.arange(60) % 3
    x = centres[labels] + rng.normal(size=(60, 8))
    before = threads()
    made = embed_pair(x, turned(x), labels, "umap")
    after = threads()
    assert before and {name: after[name] for name in before} == before, "numba would change torch's, too"
    again = embed_pair(x, turned(x), labels, "umap")
    assert np.array_equal(made.coordinates, again.coordinates)
    points, label = made.coordinates.reshape(-1, 2), np.tile(labels, 2)
    far = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(120)
    assert (label[far.argmin(1)] == label).all(), "three groups far apart stay apart"


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "umpa"}, "unknown method 'umpa': did you mean 'umap'"),
        ({"rows": 0}, "rows must be 1 or more, got 0"),
        ({"rows": 14, "method": "umap"}, "UMAP needs 15 samples or more, there are 14; use method='pca'"),
        ({"labels": [1, 2]}, "expected 20 labels, one a row, got 2"),
        ({"y": np.ones((20, 3))}, "y does not vary over the samples"),
        ({"x": np.zeros((19, 3))}, "x has 19 rows and y 20"),
        ({"x": np.full((20, 3), np.nan)}, r"row 0 of x holds NaN or infinity"),
        ({"x": np.zeros((3, 3)), "y": np.zeros((3, 3))}, "x has 3 rows; at least 4 samples"),
    ],
)
def test_what_is_refused(rng: np.random.Generator, change: dict[str, Any], message: str) -> None:
    good = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=(20, 3)), "method": "pca"}
    with pytest.raises(UsageError, match=message):
        embed_pair(**(good | change))


def test_without_umap_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(FeatlensError, match=r"needs the package umap-learn .* use method='pca'"):
        embed_pair(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)))


def test_points_nowhere_are_an_error(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    stub(monkeypatch, np.full((40, 2), np.nan))
    with pytest.raises(FeatlensError, match="placed some samples nowhere"):
        embed_pair(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)))
