"""Bures similarity against matrix roots, subspace overlap against projections."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from featlens.errors import UsageError
from featlens.measures import angular_shape, bures, procrustes, resolve, subspace_overlap


def related(rng, n, d1, d2):
    x = rng.normal(3, 1, size=(n, d1)) * np.geomspace(0.3, 5, d1)
    return x, x @ rng.normal(size=(d1, d2)) + 5 * rng.normal(size=(n, d2))


def root(matrix):
    """Root of a positive semidefinite matrix by its eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def grams(x, y):
    h = np.eye(len(x)) - 1 / len(x)
    return h @ x @ x.T @ h, h @ y @ y.T @ h


def textbook_bures(x, y):
    """Fidelity of Gram matrices; in the space of features, where they have full rank, to keep the digits."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cross = x.T @ y if x.shape[1] <= y.shape[1] else y.T @ x
    # tr (K^1/2 L K^1/2)^1/2 is the sum of the roots of the eigenvalues of K L, which are those of X'Y Y'X.
    return np.sqrt(np.linalg.eigvalsh(cross @ cross.T)).sum() / math.sqrt((x**2).sum() * (y**2).sum())


@pytest.mark.parametrize(("n", "d1", "d2"), [(30, 4, 9), (50, 7, 7), (20, 3, 60), (25, 60, 4)])
def test_bures_is_the_fidelity_of_gram_matrices(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    assert bures(x, y) == pytest.approx(textbook_bures(x, y), abs=1e-10)
    k, m = grams(x, y)
    # Eigenvalues that should be 0 are 1e-16 here, and their roots 1e-8.
    fidelity = np.trace(root(root(k) @ m @ root(k))) / math.sqrt(np.trace(k) * np.trace(m))
    assert bures(x, y) == pytest.approx(fidelity, abs=1e-5)


def test_bures_of_wide_features_is_that_of_their_gram_matrices(rng):
    x, y = related(rng, 12, 40, 70)
    k, m = grams(x, y)
    values = scipy.linalg.eigvals(k @ m).real
    fidelity = np.sqrt(np.clip(np.sort(values)[1:], 0, None)).sum() / math.sqrt(np.trace(k) * np.trace(m))
    assert bures(x, y) == pytest.approx(fidelity, abs=1e-9)


def test_bures_is_the_cosine_of_the_angular_shape_distance(rng):
    for d1, d2 in ((4, 9), (50, 3), (60, 70)):
        x, y = related(rng, 30, d1, d2)
        assert bures(x, y) == pytest.approx(math.cos(angular_shape(x, y)), abs=1e-12)
        assert procrustes(x, y) ** 2 == pytest.approx(2 - 2 * bures(x, y), abs=1e-12)


def textbook_projection(x, variance):
    """Projection (n, n) on the leading eigenvectors of the Gram matrix."""
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x @ x.T)
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.argmax(np.cumsum(values) / values.sum() >= variance - 1e-13)) + 1
    return vectors[:, :kept] @ vectors[:, :kept].T


@pytest.mark.parametrize(("n", "d1", "d2"), [(30, 4, 9), (50, 7, 7), (40, 30, 5)])
@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
def test_overlap_is_that_of_projections(rng, n, d1, d2, variance):
    x, y = related(rng, n, d1, d2)
    p, q = (textbook_projection(side, variance) for side in (x, y))
    expected = np.trace(p @ q) / max(np.trace(p), np.trace(q))
    assert subspace_overlap(x, y, variance=variance) == pytest.approx(expected, abs=1e-10)


def test_overlap_of_nested_and_of_orthogonal_subspaces(rng):
    scores = np.linalg.qr(rng.normal(size=(40, 9)))[0]
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0]
    assert subspace_overlap(scores[:, :6], scores[:, 2:4]) == pytest.approx(2 / 6, abs=1e-12)
    assert subspace_overlap(scores[:, :6], scores[:, 6:]) == pytest.approx(0, abs=1e-12)
    assert subspace_overlap(scores[:, :6], scores[:, 3:]) == pytest.approx(3 / 6, abs=1e-12)


def test_overlap_ignores_how_variance_is_spread_inside_the_subspaces(rng):
    scores = np.linalg.qr(rng.normal(size=(40, 5)))[0]
    spread = scores * [3.0, 1.0, 1.0, 2.0, 1.0]
    assert subspace_overlap(scores, spread) == pytest.approx(1, abs=1e-12)
    assert bures(scores, spread) < 0.96


def test_overlap_ignores_what_lies_below_the_share_of_variance(rng):
    x = rng.normal(size=(100, 4))
    sides = [np.hstack([x, 0.02 * rng.normal(size=(100, 4))]) for _ in range(2)]
    assert subspace_overlap(*sides) > 0.99
    assert subspace_overlap(*sides, variance=1.0) < 0.7


def test_unrelated_subspaces_overlap_by_their_share_of_the_dimensions(rng):
    values = [
        subspace_overlap(rng.normal(size=(41, 10)), rng.normal(size=(41, 6)), variance=1.0)
        for _ in range(200)
    ]
    assert np.mean(values) == pytest.approx(6 / 40, abs=0.01)


@pytest.mark.parametrize("n", [9, 10, 11])
def test_a_subspace_of_all_dimensions_has_no_overlap(rng, n):
    x, y = rng.normal(size=(n, 9)), rng.normal(size=(n, 2))
    for a, b in ((x, y), (y, x)):
        assert math.isnan(subspace_overlap(a, b, variance=1.0)) == (n - 1 <= 9)


@pytest.mark.parametrize("value", [0, -0.1, 1.01, 99])
def test_a_share_is_in_the_unit_interval(value):
    with pytest.raises(UsageError, match=r"subspace_overlap: variance must be in \(0, 1\], got .*; choose"):
        resolve(f"subspace_overlap(variance={value})")


def test_wide_features_come_with_a_warning():
    for name in ("bures", "subspace_overlap"):
        method = resolve(name).method
        assert method.warning(100, 40, 30) is None
        assert "100 samples" in method.warning(100, 400, 200)
