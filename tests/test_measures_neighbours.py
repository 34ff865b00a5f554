"""Neighbour measures against explicit sets, with ties, duplicates and samples that have no neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from featlens.errors import UsageError
from featlens.measures import cknna, jaccard_knn, mutual_knn, resolve
from featlens.measures.neighbours import neighbour_weights

MEASURES = [mutual_knn, jaccard_knn, cknna]
METRICS = ["cosine", "euclidean"]


def related(rng, n, d1, d2):
    """Two feature sets that share a signal."""
    x = rng.normal(size=(n, d1))
    return x, x @ rng.normal(size=(d1, d2)) + d1**0.5 * rng.normal(size=(n, d2))


def sets(x, k, metric):
    apart = cdist(x, x, metric)
    np.fill_diagonal(apart, np.inf)
    return [set(np.argsort(row)[:k]) for row in apart]


def textbook(function, x, y, k, metric):
    x, y = (np.asarray(v, dtype=np.float64) for v in (x, y))
    near_x, near_y = sets(x, k, metric), sets(y, k, metric)
    if function is mutual_knn:
        return np.mean([len(a & b) / k for a, b in zip(near_x, near_y, strict=True)])
    if function is jaccard_knn:
        return np.mean([len(a & b) / len(a | b) for a, b in zip(near_x, near_y, strict=True)])
    kernels = []
    for v in (x, y):
        v = v / np.linalg.norm(v, axis=1, keepdims=True) if metric == "cosine" else v - v.mean(axis=0)
        kernels.append(v @ v.T - (v @ v.T).mean(axis=1, keepdims=True))

    def align(a, near_a, b, near_b):
        return sum(a[i, j] * b[i, j] for i in range(len(x)) for j in near_a[i] & near_b[i])

    both = align(kernels[0], near_x, kernels[1], near_y)
    own = align(kernels[0], near_x, kernels[0], near_x) * align(kernels[1], near_y, kernels[1], near_y)
    return both / math.sqrt(own)


@pytest.mark.parametrize("function", MEASURES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("n", "d1", "d2", "k"), [(4, 3, 2, 1), (30, 5, 8, 10), (25, 400, 60, 3), (12, 4, 4, 10)]
)
def test_values_are_those_of_explicit_sets(rng, function, metric, n, d1, d2, k):
    x, y = related(rng, n, d1, d2)
    expected = textbook(function, x, y, k, metric)
    assert function(x, y, k=k, metric=metric) == pytest.approx(expected, abs=1e-10)
    narrow = function(x.astype(np.float32), y.astype(np.float32), k=k, metric=metric)
    assert narrow == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("function", MEASURES)
@pytest.mark.parametrize("metric", METRICS)
def test_ill_conditioned_features(rng, function, metric):
    x, y = related(rng, 40, 6, 7)
    far = [v + 100 * v.std() for v in (x, y)]
    assert function(*far, 5, metric) == pytest.approx(textbook(function, *far, 5, metric), abs=1e-10)
    expected = textbook(function, x, y, 5, metric)
    assert function(1e-12 * x, 1e12 * y, 5, metric) == pytest.approx(expected, abs=1e-10)
    assert function(np.hstack([x, x]), y, 5, metric) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("function", MEASURES)
def test_shifts_matter_to_the_cosine_only(rng, function):
    x, y = related(rng, 40, 6, 7)
    shifted = x + 2 * np.arange(6)
    assert function(shifted, y, 5, "euclidean") == pytest.approx(function(x, y, 5, "euclidean"), abs=1e-9)
    assert abs(function(shifted, y, 5) - function(x, y, 5)) > 1e-3


def test_unrelated_features_share_as_many_neighbours_as_chance_gives(rng):
    values = [mutual_knn(rng.normal(size=(60, 5)), rng.normal(size=(60, 5))) for _ in range(40)]
    assert np.mean(values) == pytest.approx(10 / 59, abs=0.01)


def test_mutual_neighbours_and_jaccard_agree_where_all_samples_do(rng):
    x, y = rng.normal(size=(2, 30, 4))
    overlap = np.array([len(a & b) for a, b in zip(sets(x, 6, "cosine"), sets(y, 6, "cosine"), strict=True)])
    assert jaccard_knn(x, y, 6) == pytest.approx(np.mean(overlap / (12 - overlap)), abs=1e-12)


def test_ties_at_the_last_place_are_shared():
    # From the sample at 0: one neighbour at 1, then two at 2 for a single place.
    weights = neighbour_weights(np.array([[0.0], [1.0], [2.0], [-2.0], [9.0]]), 2)
    np.testing.assert_allclose(weights[0], [0, 1, 0.5, 0.5, 0])
    np.testing.assert_allclose(weights.sum(axis=1), 2)
    np.testing.assert_allclose(np.diag(weights), 0)


def test_rounding_breaks_no_ties(rng):
    turned = np.eye(8) @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    x = np.vstack([turned, turned[0] * 1.5])
    # Of the eighth sample all others of the turned cube's corners are equally far away, the ninth farther.
    np.testing.assert_allclose(neighbour_weights(x, 3)[7], [3 / 7] * 7 + [0, 0], rtol=1e-12)


@pytest.mark.parametrize("function", MEASURES)
@pytest.mark.parametrize("metric", METRICS)
def test_the_order_of_samples_makes_no_similarity(rng, function, metric):
    # Thirty copies of each of two samples: the first five of the tied would depend on their order.
    x, y = np.repeat(rng.normal(size=(2, 4)), 30, axis=0), rng.normal(size=(60, 4))
    value = function(x, y, 5, metric)
    order = rng.permutation(60)
    assert function(x[order], y[order], 5, metric) == pytest.approx(value, abs=1e-12)
    weights = neighbour_weights(x, 5)
    assert set(np.unique(weights).round(12)) == {0, round(5 / 29, 12)}


@pytest.mark.parametrize("function", MEASURES)
@pytest.mark.parametrize("metric", METRICS)
def test_two_sides_without_neighbours_are_not_alike(function, metric):
    constant, equal = np.full((20, 3), 0.1), np.eye(20)
    for x, y in ((constant, constant), (equal, equal), (constant, equal)):
        assert math.isnan(function(x, y, 5, metric))


@pytest.mark.parametrize("function", MEASURES)
def test_features_with_duplicates_are_alike_to_themselves(rng, function):
    x = np.repeat(rng.normal(size=(12, 4)), 3, axis=0)
    assert function(x, x, 4) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("function", MEASURES)
def test_a_sample_without_direction_is_undefined_for_the_cosine(rng, function):
    x, y = related(rng, 20, 3, 3)
    x[4] = 0
    assert math.isnan(function(x, y, 5))
    assert not math.isnan(function(x, y, 5, "euclidean"))


def test_cknna_may_be_negative_and_is_not_clamped(rng):
    values = [cknna(rng.normal(size=(30, 3)), rng.normal(size=(30, 3)), 3, "euclidean") for _ in range(30)]
    assert all(-1 <= value <= 1 for value in values)
    x = rng.normal(size=(14, 2))
    assert cknna(x, -x, 12) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("function", MEASURES)
def test_k_must_fit(rng, function):
    x, name = rng.normal(size=(11, 3)), function.__name__
    for k in (10, 11, 50):
        with pytest.raises(
            UsageError, match=f"{name}: k = {k} needs at least {k + 2} samples, got 11; choose"
        ):
            function(x, x, k)
    for k in (0, -1, 2.0, True, "3"):
        with pytest.raises(UsageError, match=f"{name}: k must be a whole number of at least 1, got"):
            function(x, x, k)
    with pytest.raises(UsageError, match=f"{name}: unknown metric 'cosin': did you mean 'cosine'"):
        function(x, x, 3, "cosin")
    assert function(x, x, 9) == pytest.approx(1, abs=1e-12)


def test_the_smallest_number_of_samples_follows_k():
    for function in MEASURES:
        assert [resolve(f"{function.__name__}({told})").least for told in ("", "k=3")] == [12, 5]
