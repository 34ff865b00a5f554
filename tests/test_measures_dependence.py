"""Distance correlation against explicit sums, and what it sees that correlations do not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from featlens.errors import UsageError
from featlens.measures import distance_correlation


def related(rng, n, d1, d2):
    """Two feature sets that share a signal."""
    x = rng.normal(size=(n, d1))
    return x, x @ rng.normal(size=(d1, d2)) + d1**0.5 * rng.normal(size=(n, d2))


def apart(x):
    x = np.asarray(x, dtype=np.longdouble)
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])


def doubly(a):
    """Szekely, Rizzo and Bakirov 2007, definition 4."""
    return a - a.mean(axis=0) - a.mean(axis=1)[:, None] + a.mean()


def unbiased(a):
    """Szekely and Rizzo 2014, definition 2, entry by entry."""
    n, out = len(a), np.zeros_like(a)
    for i in range(n):
        for j in range(n):
            if i != j:
                rows = a[i].sum() / (n - 2) + a[:, j].sum() / (n - 2)
                out[i, j] = a[i, j] - rows + a.sum() / ((n - 1) * (n - 2))
    return out


def textbook(x, y, estimator):
    a, b = (doubly(apart(v)) if estimator == "biased" else unbiased(apart(v)) for v in (x, y))
    ratio = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    return float(np.sqrt(ratio) if estimator == "biased" else ratio)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize(("n", "d1", "d2"), [(4, 1, 1), (5, 3, 2), (25, 4, 9), (12, 600, 90)])
def test_distance_correlation_is_the_textbook_ratio(rng, estimator, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    expected = textbook(x, y, estimator)
    assert distance_correlation(x, y, estimator) == pytest.approx(expected, abs=1e-10)
    narrow = distance_correlation(x.astype(np.float32), y.astype(np.float32), estimator)
    assert narrow == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_ill_conditioned_features(rng, estimator):
    x, y = related(rng, 30, 6, 7)
    expected = textbook(x, y, estimator)
    far = [v + 100 * v.std() for v in (x, y)]
    assert distance_correlation(*far, estimator) == pytest.approx(expected, abs=1e-10)
    single = [v.astype(np.float32) for v in far]
    assert distance_correlation(*single, estimator) == pytest.approx(expected, abs=1e-5)
    assert distance_correlation(1e-12 * x, 1e12 * y, estimator) == pytest.approx(expected, abs=1e-10)
    assert distance_correlation(np.hstack([x, x]), y, estimator) == pytest.approx(expected, abs=1e-10)
    twice = [np.vstack([v, v]) for v in (x, y)]
    assert distance_correlation(*twice, estimator) == pytest.approx(textbook(*twice, estimator), abs=1e-10)


def test_two_samples_have_the_biased_form_only(rng):
    x, y = rng.normal(size=(2, 3)), rng.normal(size=(2, 4))
    assert distance_correlation(x, y, "biased") == pytest.approx(1)
    with pytest.raises(UsageError, match="x has 2 rows; at least 4 samples are needed"):
        distance_correlation(x, y)


def test_independent_wide_features_look_alike_only_to_the_biased_estimator(rng):
    x, y = rng.normal(size=(40, 3000)), rng.normal(size=(40, 3000))
    assert distance_correlation(x, y, "biased") > 0.95
    assert abs(distance_correlation(x, y)) < 0.15


def test_independent_features_scatter_around_zero_and_below(rng):
    values = [distance_correlation(rng.normal(size=(15, 3)), rng.normal(size=(15, 4))) for _ in range(200)]
    assert min(values) < -0.05
    assert abs(np.mean(values)) < 4 * np.std(values) / 200**0.5


def test_it_sees_dependence_without_correlation(rng):
    x = rng.normal(size=(400, 1))
    y = x**2 + 0.1 * rng.normal(size=(400, 1))
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 0.15 < distance_correlation(x, y)


def test_the_classical_value_of_a_linear_relation_is_one(rng):
    x = rng.normal(size=(50, 3))
    rotated = 5 * x @ np.linalg.qr(rng.normal(size=(3, 3)))[0] - 2
    assert distance_correlation(x, rotated, "biased") == pytest.approx(1, abs=1e-12)


def test_samples_at_equal_distances_are_undefined_only_without_bias(rng):
    y = rng.normal(size=(20, 4))
    assert math.isnan(distance_correlation(np.eye(20), y))
    assert distance_correlation(np.eye(20), y, "biased") > 0


def test_an_unknown_estimator_names_the_nearest():
    with pytest.raises(UsageError, match="unknown estimator 'unbiased': did you mean"):
        distance_correlation(np.eye(9), np.eye(9), "unbiased")
