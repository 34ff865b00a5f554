"""Geometry of one set of features: closed forms, known dimensions, and how far it is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from featlens.errors import UsageError
from featlens.measures import (
    anisotropy,
    dead_units,
    effective_rank,
    geometry,
    half_sample_errors,
    participation_ratio,
    rankme,
    two_nn,
)
from featlens.measures.geometry import GEOMETRY

SINGLE = [effective_rank, rankme, participation_ratio, anisotropy, dead_units]


def entropy_rank(x, epsilon=0.0):
    """Roy and Vetterli 2007; with epsilon RankMe, equations 1 and 2."""
    singular = np.linalg.svd(x, compute_uv=False)
    shares = [value / singular.sum() + epsilon for value in singular]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


def textbook_two_nn(x, discard=0.1):
    """Facco et al. 2017: ratios in order, empirical distribution, line through the origin."""
    apart = squareform(pdist(np.unique(x, axis=0)))
    ratios = sorted(row[2] / row[1] for row in np.sort(apart, axis=1))
    n = len(ratios)
    used = [(math.log(ratio), -math.log(1 - i / n)) for i, ratio in enumerate(ratios, 1) if i < n]
    used = used[: math.floor(n * (1 - discard))]
    return sum(a * b for a, b in used) / sum(a * a for a, _ in used)


def features(rng, n, d):
    return rng.normal(size=(n, d)) @ np.diag(np.geomspace(3, 0.3, d)) + rng.normal(size=d)


@pytest.mark.parametrize(("n", "d"), [(4, 1), (4, 3), (60, 7), (30, 500)])
@pytest.mark.parametrize("scale", [1, 1e-12, 1e12, 1e-200])
def test_values_are_those_of_the_definitions(rng, n, d, scale):
    x = features(rng, n, d)
    spread = x - x.mean(axis=0)
    eigenvalues = np.linalg.eigvalsh(spread.T @ spread)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(x) for b in x[:i]]
    found = geometry(scale * x)
    assert list(found) == list(GEOMETRY)
    assert found["effective_rank"] == pytest.approx(entropy_rank(spread), rel=1e-10)
    assert found["rankme"] == pytest.approx(entropy_rank(x, 1e-7), rel=1e-10)
    expected = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert found["participation_ratio"] == pytest.approx(expected, rel=1e-10)
    assert found["two_nn"] == pytest.approx(textbook_two_nn(x), rel=1e-10)
    assert found["anisotropy"] == pytest.approx(np.mean(cosines), abs=1e-10)
    assert found["dead_units"] == 0


def test_float32_and_torch_agree(rng):
    torch = pytest.importorskip("torch")
    x = features(rng, 80, 9)
    expected = geometry(x)
    assert geometry(torch.tensor(x)) == pytest.approx(expected, rel=1e-12)
    assert geometry(x.astype(np.float32)) == pytest.approx(expected, rel=1e-4)
    errors = half_sample_errors(x, 5)
    assert half_sample_errors(torch.tensor(x), 5) == pytest.approx(errors, rel=1e-6)


def test_a_mean_far_above_the_spread_costs_no_digits(rng):
    x = rng.normal(size=(100, 6))
    far = x + 100 * np.arange(1, 7)
    for function in (effective_rank, participation_ratio, lambda v: two_nn(v).dimension):
        assert function(far) == pytest.approx(function(x), rel=1e-10)
    assert rankme(far) < 1.1 < 5.5 < rankme(x)
    assert anisotropy(far) > 0.999


@pytest.mark.parametrize(("n", "d"), [(8, 8), (5, 20)])
def test_orthogonal_rows(rng, n, d):
    rows = np.linalg.qr(rng.normal(size=(d, n)))[0].T
    assert rankme(rows) == pytest.approx(n, rel=1e-5)
    # Centred, n orthonormal rows span n - 1 directions alike.
    assert effective_rank(rows) == pytest.approx(n - 1, rel=1e-10)
    assert participation_ratio(rows) == pytest.approx(n - 1, rel=1e-10)
    assert anisotropy(rows) == pytest.approx(0, abs=1e-12)
    assert math.isnan(two_nn(rows).dimension), "all ratios are 1"


def test_a_line_has_one_dimension(rng):
    x = rng.normal(size=(300, 1)) * rng.normal(size=(1, 40))
    assert effective_rank(x) == pytest.approx(1, abs=1e-9)
    assert participation_ratio(x) == pytest.approx(1, abs=1e-9)
    assert rankme(x) == pytest.approx(1, abs=1e-4)
    found = two_nn(x)
    assert found.dimension == pytest.approx(1, abs=4 * found.standard_error)


@pytest.mark.parametrize("d", [2, 5, 10])
def test_an_isotropic_gaussian_has_as_many_dimensions_as_features(rng, d):
    x = rng.normal(size=(20_000, d))
    assert effective_rank(x) == pytest.approx(d, rel=1e-3)
    assert rankme(x) == pytest.approx(d, rel=1e-3)
    assert participation_ratio(x) == pytest.approx(d, rel=3e-3)
    assert anisotropy(x) == pytest.approx(0, abs=2e-3)


def test_participation_and_effective_rank_of_known_variances(rng):
    variances = np.array([4.0, 1.0, 1.0, 0.25])
    corners = np.vstack([np.diag(variances**0.5), -np.diag(variances**0.5)])
    assert participation_ratio(corners) == pytest.approx(6.25**2 / 18.0625, rel=1e-12)
    shares = np.array([2, 1, 1, 0.5]) / 4.5
    assert effective_rank(corners) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_two_nn_of_a_cube_whatever_space_it_lies_in(rng, d):
    cube = rng.uniform(size=(2000, d))
    found = two_nn(cube @ np.linalg.qr(rng.normal(size=(50, d)))[0].T)
    # Near its faces a cube looks thinner: a few per cent in five dimensions.
    assert found.dimension == pytest.approx(d, abs=4 * found.standard_error + (0.08 * d if d > 2 else 0))
    assert found.duplicates == 0


@pytest.mark.parametrize("discard", [0.1, 0.5])
def test_the_standard_error_of_two_nn_is_that_of_independent_ratios(rng, discard):
    from featlens.measures.geometry import fit_ratios

    n, d, slopes, errors = 200, 3.0, [], []
    for _ in range(400):
        # Squared distances: the first neighbour at 1, the logarithm of the second's exponential of rate d.
        apart = np.full((n, n), 1e12)
        apart[np.arange(n), (np.arange(n) + 1) % n] = 1
        apart[np.arange(n), (np.arange(n) + 2) % n] = np.exp(2 * rng.exponential(1 / d, size=n))
        slope, error = fit_ratios(apart, discard)
        slopes.append(slope)
        errors.append(error)
    assert np.mean(slopes) == pytest.approx(d, rel=0.02)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.12)


@pytest.mark.parametrize("discard", [0.0, 0.1, 0.5])
def test_two_nn_leaves_out_duplicates_and_the_largest_ratios(rng, discard):
    x = rng.normal(size=(100, 4))
    twice = np.vstack([x, x[:25]])
    found = two_nn(twice, discard)
    assert found.dimension == pytest.approx(textbook_two_nn(x, discard), rel=1e-10)
    assert found.duplicates == pytest.approx(0.2)


def test_near_duplicates_are_no_duplicates(rng):
    x = rng.normal(size=(200, 3))
    x[1::2] = x[::2] + 1e-9 * rng.normal(size=(100, 3))
    found = two_nn(x)
    assert found.duplicates == 0
    assert found.dimension == pytest.approx(textbook_two_nn(x), rel=1e-6)


def test_what_has_no_geometry_is_nan():
    constant = np.full((20, 3), 0.1)
    found = geometry(constant)
    assert [math.isnan(found[key]) for key in GEOMETRY] == [True, False, True, True, False, False]
    assert found["rankme"] == pytest.approx(1, abs=1e-4)
    assert (found["anisotropy"], found["dead_units"]) == (pytest.approx(1), 1)
    nothing = geometry(np.zeros((20, 3)))
    assert [math.isnan(nothing[key]) for key in GEOMETRY] == [True] * 5 + [False]
    two = two_nn(np.repeat(np.eye(2), 5, axis=0))
    assert math.isnan(two.dimension) and math.isnan(two.standard_error) and two.duplicates == 0.8
    assert all(math.isnan(half_sample_errors(constant, 3)[key]) for key in ("two_nn", "effective_rank"))


def test_anisotropy_leaves_samples_without_direction_out(rng):
    x = rng.normal(size=(30, 4)) + 1
    assert anisotropy(np.vstack([x, np.zeros((5, 4))])) == pytest.approx(anisotropy(x), abs=1e-12)
    assert math.isnan(anisotropy(np.vstack([x[:1], np.zeros((5, 4))])))


def test_dead_units_are_exactly_constant(rng):
    x = rng.normal(size=(30, 4))
    x[:, 1], x[:, 2] = 0.1, 0
    assert dead_units(x) == 0.5
    x[3, 2] = 1e-30
    assert dead_units(x) == 0.25


def test_half_samples_give_the_spread_between_data_sets(rng):
    scales = np.array([3, 2, 1, 1, 0.5])
    sets = [rng.normal(size=(150, 5)) * scales + 0.3 for _ in range(60)]
    values = [geometry(x) for x in sets]
    errors = [half_sample_errors(x, 30, seed) for seed, x in enumerate(sets[:12])]
    for key in ("effective_rank", "rankme", "participation_ratio"):
        spread = np.std([value[key] for value in values])
        assert np.mean([error[key] for error in errors]) == pytest.approx(spread, rel=0.3), key
    # Halves have other neighbours: the spread of TwoNN comes out too large rather than too small.
    ratio = np.mean([error["two_nn"] for error in errors]) / np.std([value["two_nn"] for value in values])
    assert 0.9 < ratio < 1.8


@pytest.mark.parametrize(("n", "d"), [(60, 5), (40, 90)])
def test_half_samples_are_the_geometry_of_halves(rng, n, d):
    x = features(rng, n, d)
    x[:, 0] = np.arange(n) == 3
    x[7] = x[8]
    draws = np.random.default_rng(4)
    halves = [np.sort(draws.permutation(n)[: n // 2]) for _ in range(3)]
    expected = {key: np.std([geometry(x[half])[key] for half in halves], ddof=1) for key in GEOMETRY}
    assert half_sample_errors(x, 3, seed=4) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("function", [*SINGLE, two_nn, geometry])
def test_wrong_features_are_refused(function):
    name = function.__name__
    with pytest.raises(UsageError, match=f"{name}: x must be .n, d. with d > 0, got shape .9, 2, 2."):
        function(np.ones((9, 2, 2)))
    with pytest.raises(UsageError, match=f"{name}: row 4 of x holds NaN or infinity"):
        function(np.where(np.arange(9)[:, None] == 4, np.inf, np.ones((9, 2))))
    with pytest.raises(UsageError, match=f"{name}: x has 1 rows; at least"):
        function(np.ones((1, 2)))


def test_wrong_options_are_refused():
    for discard in (1, -0.1, "x", True):
        with pytest.raises(UsageError, match="two_nn: discard must be at least 0 and below 1, got"):
            two_nn(np.eye(9), discard)
    with pytest.raises(UsageError, match="resamples must be a whole number of at least 2, got 1"):
        half_sample_errors(np.eye(9), 1)
    with pytest.raises(UsageError, match="x has 7 rows; at least 8 samples are needed"):
        half_sample_errors(np.eye(7))
