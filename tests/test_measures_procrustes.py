"""Procrustes distances against scipy, their digits near zero, and the matching of features by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.linalg

from featlens.measures import angular_shape, permutation_matching, procrustes, resolve


def related(rng, n, d1, d2):
    x = rng.normal(3, 1, size=(n, d1)) * np.geomspace(0.1, 5, d1)
    return x, x @ rng.normal(size=(d1, d2)) + 5 * rng.normal(size=(n, d2))


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def textbook_pair(x, y):
    """Centred, of norm 1, the narrower one padded with zeros."""
    width = max(x.shape[1], y.shape[1])
    x, y = (np.pad(side - side.mean(axis=0), ((0, 0), (0, width - side.shape[1]))) for side in (x, y))
    return x / np.linalg.norm(x), y / np.linalg.norm(y)


SHAPES = [(30, 4, 9), (30, 9, 4), (50, 7, 7), (20, 60, 5), (15, 40, 70), (3, 1, 1), (20, 20, 21)]


@pytest.mark.parametrize(("n", "d1", "d2"), SHAPES)
def test_distance_is_what_the_best_rotation_leaves(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    a, b = textbook_pair(x, y)
    rotation, _ = scipy.linalg.orthogonal_procrustes(a, b)
    expected = np.linalg.norm(a @ rotation - b)
    assert procrustes(x, y) == pytest.approx(expected, abs=1e-10)
    assert angular_shape(x, y) == pytest.approx(np.arccos(np.sum((a @ rotation) * b)), abs=1e-10)


@pytest.mark.parametrize(("n", "d"), [(30, 6), (20, 90)])
def test_distances_keep_their_digits_near_zero(rng, n, d):
    x, noise = rng.normal(size=(2, n, d))
    turned = x @ orthogonal(rng, d)
    assert procrustes(x, turned) < 1e-14
    assert angular_shape(x, turned) < 1e-14
    for measure in (procrustes, angular_shape):
        far, near = (measure(turned, x + level * noise) for level in (1e-5, 1e-10))
        # 2 - 2 |X'Y|_* alone would be noise of 1e-8 here.
        assert near == pytest.approx(1e-5 * far, rel=1e-3)


def test_both_ways_of_forming_the_distance_meet(rng, monkeypatch):
    module = __import__(procrustes.__module__, fromlist=["_"])
    x, y = related(rng, 30, 4, 9)
    values = []
    for near in (0.0, 4.0):
        monkeypatch.setattr(module, "NEAR", near)
        values.append([procrustes(x, y), procrustes(y, x), angular_shape(x, y)])
    assert np.allclose(*values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("measure", [procrustes, angular_shape])
def test_the_distances_are_metrics(rng, measure):
    sides = [rng.normal(size=(12, int(d))) for d in rng.integers(1, 20, size=7)]
    apart = np.array([[measure(a, b) for b in sides] for a in sides])
    assert np.allclose(apart, apart.T, rtol=0, atol=1e-12)
    for i, j, k in itertools.product(range(len(sides)), repeat=3):
        assert apart[i, k] <= apart[i, j] + apart[j, k] + 1e-12


def test_features_without_anything_in_common_are_farthest_apart():
    waves = np.cos(2 * np.pi * np.outer(np.arange(16), [1, 2]) / 16)
    assert procrustes(waves[:, :1], waves[:, 1:]) == pytest.approx(math.sqrt(2), abs=1e-12)
    assert angular_shape(waves[:, :1], waves[:, 1:]) == pytest.approx(math.pi / 2, abs=1e-12)


def test_the_distance_is_not_its_square(rng):
    x = rng.normal(size=(30, 4))
    y = x + 0.3 * rng.normal(size=(30, 4))
    a, b = textbook_pair(x, y)
    square = 2 - 2 * np.linalg.svd(a.T @ b, compute_uv=False).sum()
    assert procrustes(x, y) == pytest.approx(math.sqrt(square), abs=1e-10)
    assert abs(procrustes(x, y) - square) > 0.05
    assert procrustes(x, y) == pytest.approx(2 * math.sin(angular_shape(x, y) / 2), abs=1e-12)


def test_mirrored_features_are_no_farther_than_rotated_ones(rng):
    x = rng.normal(size=(30, 3))
    assert procrustes(x, x * [1, 1, -1]) < 1e-14


def brute_force(x, y):
    """Largest mean correlation over all one-to-one matchings."""
    correlations = np.corrcoef(x.T, y.T)[: x.shape[1], x.shape[1] :]
    if x.shape[1] > y.shape[1]:
        correlations = correlations.T
    rows = np.arange(len(correlations))
    chosen = itertools.permutations(range(correlations.shape[1]), len(correlations))
    return max(correlations[rows, list(columns)].mean() for columns in chosen)


@pytest.mark.parametrize(
    ("n", "d1", "d2"), [(30, 4, 6), (30, 6, 4), (10, 5, 5), (3, 2, 2), (8, 1, 7), (9, 1, 1)]
)
def test_matching_is_the_best_of_all(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    assert permutation_matching(x, y) == pytest.approx(brute_force(x, y), abs=1e-10)


def test_matching_finds_permuted_and_scaled_features_but_no_rotated_ones(rng):
    x = rng.normal(size=(50, 20))
    order = rng.permutation(20)
    assert permutation_matching(x, x[:, order] * rng.uniform(0.1, 10, 20) + 3) == pytest.approx(1, abs=1e-12)
    assert permutation_matching(x, x @ orthogonal(rng, 20)) < 0.7


def test_matching_keeps_the_sign_of_correlations(rng):
    x = rng.normal(size=(50, 1))
    assert permutation_matching(x, -x) == pytest.approx(-1, abs=1e-12)


def test_constant_features_find_no_partner_and_cost_nothing(rng):
    x = rng.normal(size=(50, 3))
    padded = np.hstack([np.full((50, 4), 0.1), x])
    assert permutation_matching(padded, x) == pytest.approx(1, abs=1e-12)
    assert permutation_matching(padded, padded) == pytest.approx(1, abs=1e-12)


def test_features_that_find_no_partner_count_for_nothing(rng):
    x = rng.normal(size=(50, 6))
    assert permutation_matching(x, x[:, 2:5]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", ["procrustes", "angular_shape"])
def test_wide_features_come_with_a_warning(name):
    method = resolve(name).method
    assert method.warning(100, 40, 50) is None
    assert "100 samples for 200 features" in method.warning(100, 40, 200)
