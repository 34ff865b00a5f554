"""Intervals, tallies of permutations, false discovery rates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from featlens import compare
from featlens.comparison.statistics import Tally, false_discovery_rates, interval


def columns(value, nulls, direction="similarity", pieces=1):
    tally = Tally(np.asarray(value, dtype=float), direction)
    for piece in np.array_split(np.asarray(nulls, dtype=float), pieces):
        tally.add(piece)
    return tally.columns()


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_null_columns_summarise_the_permutations(pieces):
    nulls = np.array([[0.1, np.nan], [0.2, np.nan], [0.6, np.nan], [0.5, np.nan]]).reshape(4, 1, 2)
    found = columns([[0.5, np.nan]], nulls, pieces=pieces)
    assert found["null"][0, 0] == pytest.approx(0.35)
    assert found["null_high"][0, 0] == pytest.approx(np.quantile([0.1, 0.2, 0.5, 0.6], 0.95))
    # Two reach the value, one of them exactly.
    assert found["p"][0, 0] == pytest.approx(3 / 5)
    assert found["p_family"][0, 0] == pytest.approx(3 / 5)
    for column in found.values():
        assert np.isnan(column[0, 1])


def test_family_wise_p_values_count_the_largest_null_of_the_grid():
    nulls = np.array([[0.1, 0.6], [0.1, 0.4], [0.1, 0.2]]).reshape(3, 1, 2)
    found = columns([[0.5, 0.3]], nulls)
    assert found["p"].ravel().tolist() == [1 / 4, 3 / 4]
    assert found["p_family"].ravel().tolist() == [2 / 4, 3 / 4]


def test_distances_are_extreme_where_they_are_small():
    nulls = np.array([[1.1, 0.6], [1.3, 0.4], [1.2, 0.2]]).reshape(3, 1, 2)
    found = columns([[1.0, 0.3]], nulls, "distance")
    assert found["p"].ravel().tolist() == [1 / 4, 2 / 4]
    # The smallest of the grid, whichever cell it is in: 0.6, 0.4 and 0.2.
    assert found["p_family"].ravel().tolist() == [1.0, 2 / 4]
    np.testing.assert_allclose(found["null_high"].ravel(), np.quantile(nulls[:, 0], 0.05, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["null"].ravel(), [1.2, 0.4])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["similarity", "distance"]))
def test_tallies_are_counts(seed, direction):
    rng = np.random.default_rng(seed)
    # Few distinct values, so that there are ties.
    value, nulls = rng.integers(0, 5, (3, 2)) / 7, rng.integers(0, 5, (19, 3, 2)) / 7
    value[rng.random((3, 2)) < 0.2] = np.nan
    nulls[:, np.isnan(value)] = np.nan
    found = columns(value, nulls, direction, pieces=int(rng.integers(1, 5)))
    sign = 1 if direction == "similarity" else -1
    for i in range(3):
        for j in range(2):
            if np.isnan(value[i, j]):
                assert all(np.isnan(column[i, j]) for column in found.values())
                continue
            reached = sum(sign * null[i, j] >= sign * value[i, j] - 1e-9 for null in nulls)
            family = sum(
                any(entry >= sign * value[i, j] - 1e-9 for entry in (sign * null).ravel() if entry == entry)
                for null in nulls
            )
            assert found["p"][i, j] == pytest.approx((1 + reached) / 20)
            assert found["p_family"][i, j] == pytest.approx((1 + family) / 20)
            assert 0 < found["p"][i, j] <= found["p_family"][i, j] <= 1


def test_a_null_value_that_is_undefined_gives_no_p_value():
    nulls = np.array([[0.1, 0.6], [np.nan, 0.4], [0.1, 0.2]]).reshape(3, 1, 2)
    found = columns([[0.5, 0.3]], nulls)
    for column in found.values():
        assert np.isnan(column[0, 0])
    assert found["p"][0, 1] == 3 / 4
    assert found["p_family"][0, 1] == 3 / 4


def test_without_permutations_nothing_is_known():
    found = columns([[0.5, np.nan]], np.zeros((0, 1, 2)))
    assert set(found) == {"null", "null_high", "p", "p_family"}
    assert all(np.isnan(column).all() for column in found.values())


def test_intervals_are_quantiles_of_t():
    for level, degrees in ((0.95, 9), (0.8, 1), (0.99, 2047)):
        low, high = interval(np.array(0.3), np.array(0.01), level, degrees, (-1, 1))
        half = student.ppf(0.5 + level / 2, degrees) * 0.01
        assert (float(low), float(high)) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-12)


def test_intervals_stay_within_the_range_of_the_measure():
    value, error = np.array([0.05, 0.5, 0.98, np.nan]), np.array([0.1, np.nan, 0.1, 0.1])
    low, high = interval(value, error, 0.95, 99, (0, 1))
    assert (low[0], high[2]) == (0, 1)
    assert 0.2 < high[0] < 0.3
    assert 0.7 < low[2] < 0.8
    assert np.isnan([low[1], high[1], low[3], high[3]]).all()
    low, high = interval(value, error, 0.95, 99, (-np.inf, np.inf))
    assert low[0] < 0 < 1 < high[2]


@given(st.lists(st.one_of(st.floats(0.001, 1), st.sampled_from([0.01, 0.5, 1.0])), min_size=1, max_size=40))
def test_false_discovery_rates_are_those_of_scipy(p):
    found = false_discovery_rates(np.array(p))
    np.testing.assert_allclose(found, false_discovery_control(p), rtol=1e-12)


def test_false_discovery_rates_leave_out_what_is_undefined():
    p = np.array([[[0.01, np.nan], [0.2, 0.03]]])
    found = false_discovery_rates(p)
    assert found.shape == p.shape
    np.testing.assert_allclose(found[~np.isnan(p)], false_discovery_control([0.01, 0.2, 0.03]))
    assert np.isnan(found[0, 0, 1])
    assert np.isnan(false_discovery_rates(np.full((2, 2), np.nan))).all()


def test_false_discovery_rates_are_over_all_cells_of_a_panel(rng):
    a, b = ({f"s{i}": rng.normal(size=(2, 30, 4)) for i in range(count)} for count in (2, 3))
    b["s0"] = a["s0"] + rng.normal(size=(2, 30, 4))
    found = compare({"a": a, "b": b}, sigmas=(1, 2), permutations=100, intervals=False).panel().arrays
    expected = false_discovery_control(found["p"].ravel()).reshape(found["p"].shape)
    np.testing.assert_allclose(found["q"], expected, rtol=1e-12)
    assert len(np.unique(found["q"])) > 2


@pytest.mark.parametrize("name", ["cka", "distance_correlation"])
def test_intervals_cover_the_value_of_many_samples(name):
    """Coverage over samples from one distribution, for values well inside the range."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 5))

    def draw(n):
        signal = rng.normal(size=(n, 4))
        return {"s": signal}, {"s": signal @ weights + 2 * rng.normal(size=(n, 5))}

    large = [compare(dict(zip("ab", draw(1500), strict=True)), name, permutations=0) for _ in range(4)]
    truth = np.mean([result.cells()[0]["value"] for result in large])
    covered = []
    for _ in range(150):
        cell = compare(dict(zip("ab", draw(150), strict=True)), name, permutations=0).cells()[0]
        covered.append(cell["ci_low"] <= truth <= cell["ci_high"])
    slack = 3 * (0.05 * 0.95 / 150) ** 0.5
    assert 0.95 - slack <= np.mean(covered)
