"""RSA against scipy's distances and correlations, with ties, and what each distance is invariant to."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import kendalltau, pearsonr, spearmanr

from featlens.errors import UsageError
from featlens.measures import rsa
from featlens.measures.declare import resolve

DISTANCES = ("correlation", "cosine", "euclidean")
COMPARED = {"pearson": pearsonr, "spearman": spearmanr, "kendall": kendalltau}
OPTIONS = list(itertools.product(DISTANCES, COMPARED))


def related(rng, n, d1, d2):
    """Two feature sets that share a signal."""
    x = rng.normal(size=(n, d1))
    return x, x @ rng.normal(size=(d1, d2)) + d1**0.5 * rng.normal(size=(n, d2))


def textbook(x, y, distance, comparison):
    """Distances of all pairs, then a correlation over them; ties up to rounding."""
    first, second = (pdist(v, distance) for v in (x, y))
    if comparison != "pearson":
        first, second = (np.round(v / v.max(), 11) for v in (first, second))
    return float(COMPARED[comparison](first, second).statistic)


@pytest.mark.parametrize(("distance", "comparison"), OPTIONS)
@pytest.mark.parametrize(("n", "d1", "d2"), [(4, 3, 5), (25, 4, 9), (15, 500, 70)])
def test_rsa_is_the_textbook_correlation(rng, distance, comparison, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    expected = textbook(x, y, distance, comparison)
    assert rsa(x, y, distance, comparison) == pytest.approx(expected, abs=1e-10)
    if comparison == "pearson":
        narrow = rsa(x.astype(np.float32), y.astype(np.float32), distance, comparison)
        assert narrow == pytest.approx(expected, abs=1e-5)


def test_pairs_by_hand():
    x, y = (np.array([[0.0], [1.0], [3.0], [7.0]]), np.array([[0.0], [2.0], [3.0], [3.5]]))
    # Pairs 01 02 03 12 13 23: distances 1 3 7 2 6 4 and 2 3 3.5 1 1.5 0.5.
    assert rsa(x, y, "euclidean", "pearson") == pytest.approx(
        np.corrcoef([1, 3, 7, 2, 6, 4], [4, 6, 7, 2, 3, 1])[0, 1]
    )
    assert rsa(x, y, "euclidean", "spearman") == pytest.approx(1 - 6 * (9 + 4 + 0 + 0 + 4 + 9) / (6 * 35))
    # Of 15 pairs of pairs 9 agree, 6 do not.
    assert rsa(x, y, "euclidean", "kendall") == pytest.approx(3 / 15)


def test_default_is_spearman_over_correlation_distances(rng):
    x, y = related(rng, 20, 6, 7)
    assert rsa(x, y) == rsa(x, y, "correlation", "spearman")


def test_float32_ranks_agree_but_for_ties(rng):
    x, y = related(rng, 40, 20, 30)
    for comparison in ("spearman", "kendall"):
        found = rsa(x.astype(np.float32), y.astype(np.float32), comparison=comparison)
        assert found == pytest.approx(rsa(x, y, comparison=comparison), abs=1e-5)


@pytest.mark.parametrize(("distance", "comparison"), OPTIONS)
def test_equal_distances_are_ties_whatever_rounding_does(rng, distance, comparison):
    x, y = (rng.integers(0, 2, size=(30, 9)).astype(float) for _ in range(2))
    x[:, 0], x[:, 1], y[:, 0], y[:, 1] = 1, 0, 1, 0
    found = rsa(x, y, distance, comparison)
    assert found == pytest.approx(textbook(x, y, distance, comparison), abs=1e-10)


@pytest.mark.parametrize(("distance", "comparison"), OPTIONS)
def test_ill_conditioned_features(rng, distance, comparison):
    x, y = related(rng, 30, 6, 7)
    far = [v + 100 * v.std() * np.arange(1, v.shape[1] + 1) for v in (x, y)]
    expected = textbook(*far, distance, comparison)
    assert rsa(*far, distance, comparison) == pytest.approx(
        expected, abs=1e-10 if distance == "euclidean" else 1e-9
    )
    assert rsa(1e-12 * x, 1e12 * y, distance, comparison) == pytest.approx(
        rsa(x, y, distance, comparison), abs=1e-10
    )
    repeated = np.hstack([x, x])
    assert rsa(repeated, y, distance, comparison) == pytest.approx(rsa(x, y, distance, comparison), abs=1e-10)
    twice = [np.vstack([v, v]) for v in (x, y)]
    assert rsa(*twice, distance, comparison) == pytest.approx(
        textbook(*twice, distance, comparison), abs=1e-9
    )


def test_near_duplicates_keep_their_ranks(rng):
    x = rng.normal(size=(12, 40)) + 50
    steps = np.geomspace(1e-9, 1e-3, 11)
    x[1:] = x[0] + steps[:, None] * rng.normal(size=40)
    y = np.r_[0, steps][:, None] * np.ones((1, 3))
    assert rsa(x, y, "euclidean", "spearman") > 0.99


HOLDS = {
    "euclidean": {"shift", "scale", "permutation", "orthogonal"},
    "cosine": {"scale", "permutation", "orthogonal"},
    "correlation": {"scale", "permutation"},
}


@pytest.mark.parametrize(("distance", "comparison"), OPTIONS)
def test_invariances_are_those_of_the_distance(rng, distance, comparison):
    x, y = related(rng, 30, 5, 7)
    changed = {
        "shift": x + rng.normal(size=5),
        "scale": 3 * x,
        "permutation": x[:, rng.permutation(5)],
        "orthogonal": x @ np.linalg.qr(rng.normal(size=(5, 5)))[0],
        "feature_scale": x * np.geomspace(0.2, 5, 5),
        "linear": x @ rng.normal(size=(5, 5)),
    }
    value = rsa(x, y, distance, comparison)
    moved = {name: abs(rsa(other, y, distance, comparison) - value) for name, other in changed.items()}
    assert {name for name, by in moved.items() if by < 1e-9} == HOLDS[distance]
    assert all(by > 1e-3 for by in moved.values() if by >= 1e-9), moved
    if (distance, comparison) == ("correlation", "spearman"):
        assert resolve("rsa").measure.invariances == HOLDS[distance]


@pytest.mark.parametrize("comparison", COMPARED)
def test_a_row_offset_of_its_own_does_not_matter_to_the_correlation_distance(rng, comparison):
    x, y = related(rng, 30, 5, 7)
    other = x + rng.normal(size=(30, 1))
    assert rsa(other, y, comparison=comparison) == pytest.approx(rsa(x, y, comparison=comparison), abs=1e-9)


@pytest.mark.parametrize(("distance", "comparison"), OPTIONS)
def test_what_has_no_value_is_nan(rng, distance, comparison):
    y = rng.normal(size=(20, 4))
    assert math.isnan(rsa(np.eye(20), y, distance, comparison)), "all samples equally far apart"
    dead = rng.normal(size=(20, 3))
    dead[4] = 0
    assert math.isnan(rsa(dead, y, distance, comparison)) == (distance != "euclidean")
    level = rng.normal(size=(20, 3))
    level[4] = 0.1
    assert math.isnan(rsa(level, y, distance, comparison)) == (distance == "correlation")
    single = rng.normal(size=(20, 1))
    assert math.isnan(rsa(single, y, distance, comparison)) == (distance == "correlation")


def test_unknown_options_name_the_nearest():
    with pytest.raises(UsageError, match="rsa: unknown distance 'euclidian': did you mean 'euclidean'"):
        rsa(np.eye(5), np.eye(5), distance="euclidian")
    with pytest.raises(
        UsageError, match="rsa: unknown comparison 'tau': choose from spearman, pearson, kendall"
    ):
        rsa(np.eye(5), np.eye(5), comparison="tau")
    with pytest.raises(UsageError, match="x has 2 rows; at least 3 samples are needed"):
        rsa(np.eye(2), np.eye(2))
