"""The CCA family against generalised eigenproblems, and its rules for few samples and for components."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from featlens.errors import UsageError
from featlens.measures import mean_cca, mean_squared_cca, pwcca, resolve, svcca


def related(rng, n, d1, d2):
    x = rng.normal(3, 1, size=(n, d1)) * np.geomspace(0.1, 5, d1)
    return x, x @ rng.normal(size=(d1, d2)) + 5 * rng.normal(size=(n, d2))


def covariances(x, y, ridge=0.0):
    """Covariances within and between, each side's own with a ridge of that share of its mean eigenvalue."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    own = [side.T @ side for side in (x, y)]
    own = [s + ridge * np.trace(s) / len(s) * np.eye(len(s)) for s in own]
    return own[0], own[1], x.T @ y


def textbook(x, y, ridge=0.0):
    """Canonical correlations, largest first, and coefficients of x: Sxy Syy^-1 Syx w = rho^2 Sxx w."""
    sxx, syy, sxy = covariances(x, y, ridge)
    squares, coefficients = scipy.linalg.eigh(sxy @ np.linalg.solve(syy, sxy.T), sxx)
    count = min(x.shape[1], y.shape[1])
    return np.sqrt(squares[::-1][:count]), coefficients[:, ::-1][:, :count]


def textbook_pwcca(x, y, ridge=0.0):
    correlations, coefficients = textbook(x, y, ridge)
    x = x - x.mean(axis=0)
    weights = np.zeros(len(correlations))
    for i in range(len(correlations)):
        for j in range(x.shape[1]):
            weights[i] += abs((x @ coefficients[:, i]) @ x[:, j])
    return (weights * correlations).sum() / weights.sum()


def textbook_components(x, variance):
    """Scores on the leading eigenvectors of the covariance."""
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x.T, ddof=0))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = int(np.argmax(np.cumsum(values) / values.sum() >= variance)) + 1
    return x @ vectors[:, :kept]


SHAPES = [(30, 4, 9), (200, 20, 3), (60, 1, 1), (50, 7, 7), (40, 1, 12)]


@pytest.mark.parametrize(("n", "d1", "d2"), SHAPES)
@pytest.mark.parametrize("ridge", [0.0, 0.01, 3.0])
def test_cca_is_the_generalised_eigenproblem(rng, n, d1, d2, ridge):
    x, y = related(rng, n, d1, d2)
    correlations, _ = textbook(x, y, ridge)
    assert mean_cca(x, y, ridge=ridge) == pytest.approx(correlations.mean(), abs=1e-10)
    assert mean_squared_cca(x, y, ridge=ridge) == pytest.approx((correlations**2).mean(), abs=1e-10)


@pytest.mark.parametrize(("n", "d1", "d2"), SHAPES)
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_pwcca_weighs_with_the_features_of_x_whichever_is_wider(rng, n, d1, d2, ridge):
    x, y = related(rng, n, d1, d2)
    assert pwcca(x, y, ridge=ridge) == pytest.approx(textbook_pwcca(x, y, ridge), abs=1e-10)
    assert pwcca(y, x, ridge=ridge) == pytest.approx(textbook_pwcca(y, x, ridge), abs=1e-10)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
def test_svcca_is_cca_of_the_leading_components(rng, variance):
    x, y = related(rng, 60, 8, 12)
    parts = [textbook_components(side, variance - 1e-13) for side in (x, y)]
    assert svcca(x, y, variance=variance) == pytest.approx(textbook(*parts)[0].mean(), abs=1e-10)


def spectrum(rng, n, variances):
    """Centred features whose components have exactly these variances."""
    scores = np.linalg.qr(rng.normal(size=(n, len(variances))) @ np.eye(len(variances)))[0]
    scores = np.linalg.qr(scores - scores.mean(axis=0))[0]
    return scores, scores * np.sqrt(variances)


@pytest.mark.parametrize(("variance", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.9, 3), (0.99, 4)])
def test_svcca_keeps_the_fewest_components_whose_variance_reaches_the_share(rng, variance, kept):
    # Of y only as many directions of x can be seen as x keeps components; a share of the singular values
    # themselves, or a single component, would give other numbers.
    scores, x = spectrum(rng, 40, [50, 30, 15, 5])
    for shown in range(4):
        value = svcca(x, scores[:, [shown]], variance=variance)
        assert value == pytest.approx(1.0 if shown < kept else 0.0, abs=1e-9)


@pytest.mark.parametrize("n", [12, 13, 14, 15])
@pytest.mark.parametrize("measure", [mean_cca, mean_squared_cca, pwcca, svcca])
def test_a_side_of_rank_n_minus_one_has_no_value(rng, measure, n):
    options = {"variance": 1.0} if measure is svcca else {}
    x, y = rng.normal(size=(n, 12)), rng.normal(size=(n, 2))
    for a, b in ((x, y), (y, x), (x, x)):
        assert math.isnan(measure(a, b, **options)) == (n - 1 <= 12)


@pytest.mark.parametrize("measure", [mean_cca, mean_squared_cca, pwcca])
def test_with_a_ridge_wide_features_have_a_value_that_tells_related_from_unrelated(rng, measure):
    x = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 300)) + 0.1 * rng.normal(size=(40, 300))
    y = x @ rng.normal(size=(300, 200))
    # How far correlations shrink depends on the spectra, so what is unrelated must have the same.
    values = [measure(x, other, ridge=1.0) for other in (y, rng.permutation(y))]
    assert 0 < values[1] < values[0] < 1


def test_independent_features_have_the_squared_correlations_of_chance(rng):
    values = [mean_squared_cca(rng.normal(size=(41, 8)), rng.normal(size=(41, 5))) for _ in range(200)]
    # Each direction of the narrower side is explained by chance with 8 of 40 dimensions.
    assert np.mean(values) == pytest.approx(8 / 40, abs=0.01)


def test_a_ridge_lowers_correlations_and_keeps_scale_and_rotation_invariance(rng):
    x, y = related(rng, 60, 5, 6)
    q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    values = [mean_cca(x, y, ridge=ridge) for ridge in (0.0, 1e-9, 0.1, 1.0, 10.0)]
    assert values == sorted(values, reverse=True)
    assert values[1] == pytest.approx(values[0], abs=1e-6)
    assert mean_cca(1e-9 * (x @ q + 4), 1e9 * y, ridge=0.1) == pytest.approx(values[2], abs=1e-10)
    assert mean_cca(x, x, ridge=0.1) < 0.999


def test_features_that_repeat_others_up_to_rounding_of_float32_count_for_nothing(rng):
    x, y = related(rng, 60, 5, 6)
    noise = 1e-8 * rng.normal(size=60)
    more = np.hstack([x, (x.sum(axis=1) + noise)[:, None]])
    for measure in (mean_cca, mean_squared_cca):
        assert measure(more, y) == pytest.approx(measure(x, y), abs=1e-6)
        assert abs(measure(more, y, tolerance=0) - measure(x, y)) > 1e-4
    wide = np.hstack([y, rng.normal(size=(60, 1)), noise[:, None]])
    assert mean_cca(more, wide) < mean_cca(more, wide, tolerance=0)


def test_units_of_single_features_do_not_matter(rng):
    x, y = related(rng, 60, 5, 6)
    for scales in (np.geomspace(1e-12, 1e12, 5), np.geomspace(1e140, 1e-140, 5)):
        assert mean_cca(x * scales, y) == pytest.approx(mean_cca(x, y), abs=1e-10)


def test_badly_conditioned_maps_do_not_matter(rng):
    x, y = related(rng, 80, 5, 6)
    u, v = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
    assert mean_cca(x @ (u * np.geomspace(1, 1e4, 5)) @ v, y) == pytest.approx(mean_cca(x, y), abs=1e-9)


def test_noise_of_small_variance_counts_as_much_as_the_signal_and_less_for_svcca_and_pwcca(rng):
    signal = 10 * rng.normal(size=(500, 2))
    x, y = (np.hstack([signal, 0.1 * rng.normal(size=(500, 8))]) for _ in range(2))
    assert mean_cca(x, y) < 0.35
    assert pwcca(x, y) > 0.8
    assert svcca(x, y) > 0.99


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("mean_cca(ridge=-1)", r"mean_cca: ridge must be in \[0, inf\), got -1; choose a number there"),
        ("pwcca(ridge=a)", "pwcca: ridge must be in .* got 'a'"),
        ("mean_squared_cca(tolerance=1)", r"mean_squared_cca: tolerance must be in \[0, 1\), got 1;"),
        ("svcca(variance=0)", r"svcca: variance must be in \(0, 1\], got 0;"),
        ("svcca(variance=99)", r"svcca: variance must be in \(0, 1\], got 99;"),
        ("svcca(varianz=0.9)", "svcca has no option 'varianz': did you mean 'variance'?"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(told, message):
    with pytest.raises(UsageError, match=message):
        resolve(told)


def test_warnings_follow_the_rule_for_few_samples():
    method = resolve("mean_cca").method
    assert method.warning(100, 40, 50) is None
    assert "high" in method.warning(100, 60, 50)
    assert "NaN" in method.warning(100, 99, 5)
    ridge = resolve("mean_cca(ridge=0.1)").method
    assert "NaN" not in ridge.warning(100, 400, 50)


def test_names_tell_the_options():
    assert resolve("svcca(variance=0.9)").name == "svcca(variance=0.9)"
    assert resolve("mean_cca(ridge=0.1)").name == "mean_cca(ridge=0.1)"
