"""Ridge from one factorisation equals scikit-learn's ridge on standardised features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from featlens_probes.ridge import fit_path, one_hot

PENALTIES = (1e-5, 1e-2, 1.0, 1e3)


def textbook(x: NDArray[Any], targets: NDArray[Any], penalty: float, at: NDArray[Any]) -> NDArray[Any]:
    """Predictions at ``at`` of ridge on standardised features; its penalty is per row, as ours."""
    scaler = StandardScaler().fit(x)
    model = Ridge(alpha=penalty * len(x), solver="cholesky").fit(scaler.transform(x), targets)
    return np.asarray(model.predict(scaler.transform(at)))


def predictions(x: NDArray[Any], targets: NDArray[Any], penalty: float, at: NDArray[Any]) -> NDArray[Any]:
    weights, intercept = fit_path(x).coefficients(targets, penalty)
    return np.asarray(at @ weights + intercept)


def problem(
    n: int, d: int, classes: int = 3, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(classes, d))[codes]
    return x, one_hot(codes, classes), rng.normal(size=(7, d))


@given(
    st.integers(5, 60), st.integers(1, 80), st.integers(2, 5), st.sampled_from(PENALTIES), st.integers(0, 99)
)
def test_equals_scikit_learn(n: int, d: int, classes: int, penalty: float, seed: int) -> None:
    x, targets, at = problem(n, d, classes, seed)
    expected = textbook(x, targets, penalty, at)
    assert np.abs(predictions(x, targets, penalty, at) - expected).max() < 1e-8 * max(
        1, np.abs(expected).max()
    )


@pytest.mark.parametrize("penalty", PENALTIES)
def test_more_features_than_rows(penalty: float) -> None:
    x, targets, at = problem(20, 200)
    expected = textbook(x, targets, penalty, at)
    np.testing.assert_allclose(predictions(x, targets, penalty, at), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_mean_a_hundred_times_the_spread_changes_nothing(penalty: float) -> None:
    x, targets, at = problem(60, 10)
    shifted = x + 100 * x.std(axis=0)
    ours = predictions(shifted, targets, penalty, at + 100 * x.std(axis=0))
    np.testing.assert_allclose(ours, predictions(x, targets, penalty, at), atol=1e-8)
    np.testing.assert_allclose(ours, textbook(x, targets, penalty, at), atol=1e-8)


def test_the_scale_of_a_feature_changes_nothing() -> None:
    x, targets, at = problem(60, 10)
    scale = np.logspace(-6, 6, 10)
    ours = predictions(x * scale, targets, 0.1, at * scale)
    np.testing.assert_allclose(ours, predictions(x, targets, 0.1, at), atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.7e5, 1e-12])
def test_a_constant_feature_has_no_weight(constant: float) -> None:
    x, targets, at = problem(60, 5)
    wide = np.c_[x, np.full(60, constant)]
    weights, intercept = fit_path(wide).coefficients(targets, 0.1)
    assert np.isfinite(weights).all() and np.isfinite(intercept).all()
    assert np.abs(weights[-1]).max() < 1e-12
    np.testing.assert_allclose(
        np.c_[at, np.full(7, constant)] @ weights + intercept, predictions(x, targets, 0.1, at), atol=1e-8
    )


def test_rounding_noise_on_a_big_mean_counts_as_constant() -> None:
    x, targets, _ = problem(60, 5)
    noisy = 1e8 + 1e-8 * np.sign(np.random.default_rng(0).normal(size=60))
    weights, _ = fit_path(np.c_[x, noisy]).coefficients(targets, 1e-5)
    assert np.abs(weights[-1]).max() < 1e-12


def test_float32_features_are_computed_in_float64() -> None:
    x, targets, at = problem(60, 10)
    x32 = (x + 50).astype(np.float32)
    expected = textbook(x32.astype(np.float64), targets, 1e-5, at + 50)
    np.testing.assert_allclose(predictions(x32, targets, 1e-5, at + 50), expected, atol=1e-8)


def test_a_huge_penalty_leaves_the_class_shares() -> None:
    x, targets, at = problem(60, 5)
    np.testing.assert_allclose(
        predictions(x, targets, 1e12, at), np.tile(targets.mean(axis=0), (7, 1)), atol=1e-9
    )


def test_targets_are_independent_of_each_other() -> None:
    x, targets, _ = problem(40, 6)
    path = fit_path(x)
    whole, _ = path.coefficients(targets, 0.1)
    for column in range(targets.shape[1]):
        alone, _ = path.coefficients(targets[:, [column]], 0.1)
        np.testing.assert_allclose(whole[:, [column]], alone, atol=1e-12)


def test_one_hot() -> None:
    assert one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
