"""Linear predictivity against scikit-learn with the same folds; nothing of a held-out row is used."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.preprocessing import StandardScaler

from featlens.errors import UsageError
from featlens.measures import linear_predictivity, resolve

MODULE = __import__(linear_predictivity.__module__, fromlist=["_"])
fold_rows, RIDGES = MODULE.fold_rows, MODULE.RIDGES


def related(rng, n, d1, d2, noise=1.0):
    x = rng.normal(3, 1, size=(n, d1)) * np.geomspace(0.1, 5, d1)
    return x, x @ rng.normal(size=(d1, d2)) + noise * d1**0.5 * rng.normal(size=(n, d2))


def level(x):
    """Mean non-zero eigenvalue of X'X."""
    return (x**2).sum() / np.linalg.matrix_rank(x)


def textbook_ridge(x, y):
    """The ridge with the least generalised cross-validation error; hat matrices include the mean."""
    n = len(x)
    errors = []
    for ridge in RIDGES:
        hat = x @ np.linalg.solve(x.T @ x + ridge * level(x) * np.eye(x.shape[1]), x.T) + 1 / n
        errors.append(((y - hat @ y) ** 2).sum() / (n - np.trace(hat)) ** 2)
    return RIDGES[int(np.argmin(errors))]


def textbook(x, y, fit, folds=5, seed=0):
    """Pooled R2 over held-out rows; ``fit`` gives a fitted model from standardised training rows."""
    error = total = 0.0
    for train, held in fold_rows(len(x), folds, seed):
        scaler = StandardScaler().fit(x[train])
        model = fit(scaler.transform(x[train]), y[train])
        error += ((y[held] - model.predict(scaler.transform(x[held])).reshape(len(held), -1)) ** 2).sum()
        total += ((y[held] - y[train].mean(axis=0)) ** 2).sum()
    return 1 - error / total


SHAPES = [(40, 4, 7), (60, 20, 3), (30, 1, 1), (25, 60, 4), (6, 3, 2)]


@pytest.mark.parametrize(("n", "d1", "d2"), SHAPES)
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
def test_a_given_ridge_is_that_of_scikit_learn(rng, n, d1, d2, ridge):
    x, y = related(rng, n, d1, d2)
    expected = textbook(x, y, lambda a, b: Ridge(ridge * level(a), solver="svd").fit(a, b))
    assert linear_predictivity(x, y, ridge=ridge) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("folds", "seed"), [(2, 0), (3, 1), (10, 7), (40, 0)])
def test_without_a_ridge_it_is_least_squares_in_any_folds(rng, folds, seed):
    x, y = related(rng, 40, 4, 7)
    expected = textbook(x, y, lambda a, b: LinearRegression().fit(a, b), folds, seed)
    assert linear_predictivity(x, y, folds=folds, ridge=0, seed=seed) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("n", "d1", "d2"), [(40, 4, 7), (60, 20, 3), (30, 1, 1), (100, 30, 10)])
@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_the_chosen_ridge_has_the_least_generalised_cross_validation_error(rng, n, d1, d2, noise):
    x, y = related(rng, n, d1, d2, noise)
    expected = textbook(x, y, lambda a, b: Ridge(textbook_ridge(a, b) * level(a), solver="svd").fit(a, b))
    assert linear_predictivity(x, y) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("n", "d1", "d2"), [(80, 10, 7), (40, 120, 3)])
def test_the_chosen_ridge_does_as_well_as_leave_one_out(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    loo = textbook(x, y, lambda a, b: RidgeCV([ridge * level(a) for ridge in RIDGES]).fit(a, b))
    assert linear_predictivity(x, y) == pytest.approx(loo, abs=0.02)


def test_folds_are_a_partition_that_depends_on_seed_and_n_alone():
    cuts = fold_rows(23, 5, seed=3)
    assert sorted(np.concatenate([held for _, held in cuts])) == list(range(23))
    assert {len(held) for _, held in cuts} == {4, 5}
    for train, held in cuts:
        assert sorted([*train, *held]) == list(range(23))
    again, other = fold_rows(23, 5, seed=3), fold_rows(23, 5, seed=4)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(cuts, again, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(cuts, other, strict=True))


def test_no_held_out_row_touches_its_own_prediction(rng):
    x, y = related(rng, 40, 5, 2)
    _, held = fold_rows(40, 5, 0)[2]
    other_x, other_y = x.copy(), y.copy()
    other_x[held] += 100
    other_y[held] += 100
    side, other = (MODULE.Predictivity().prepare(v) for v in (x, other_x))
    # States are scaled by their largest entry; what is learnt from the training rows is not touched by it.
    a, b = side.predictors[2], other.predictors[2]
    assert np.allclose(a.values, b.values, rtol=0, atol=1e-10)
    assert np.allclose(abs(a.u), abs(b.u), rtol=0, atol=1e-10)


def test_unrelated_features_predict_nothing_however_wide(rng):
    for d in (3, 30, 300):
        values = [linear_predictivity(rng.normal(size=(50, d)), rng.normal(size=(50, 4))) for _ in range(10)]
        assert -0.15 < np.mean(values) < 0.02
    assert linear_predictivity(rng.normal(size=(50, 35)), rng.normal(size=(50, 4)), ridge=0) < -1


def test_it_has_a_direction(rng):
    y = rng.normal(size=(100, 6))
    x = y[:, :2]
    assert linear_predictivity(y, x) == pytest.approx(1, abs=1e-9)
    assert linear_predictivity(x, y) < 0.5


def test_the_features_of_y_count_with_their_variance(rng):
    x = rng.normal(size=(100, 3))
    y = np.hstack([100 * x, rng.normal(size=(100, 3))])
    assert linear_predictivity(x, y) > 0.99
    assert linear_predictivity(x, y / y.std(axis=0)) < 0.6


def test_scales_of_single_features_of_x_and_rotations_of_y_do_not_matter(rng):
    x, y = related(rng, 50, 5, 4)
    q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    expected = linear_predictivity(x, y)
    assert linear_predictivity(x * np.geomspace(1e-9, 1e9, 5), y) == pytest.approx(expected, abs=1e-9)
    assert linear_predictivity(x, y @ q) == pytest.approx(expected, abs=1e-9)


def test_a_feature_that_varies_in_one_fold_only_is_no_predictor_there(rng):
    x, y = related(rng, 40, 5, 4)
    lonely = np.zeros((40, 1))
    lonely[fold_rows(40, 5, 0)[0][1][0]] = 1
    value = linear_predictivity(np.hstack([x, lonely]), y)
    assert math.isfinite(value)
    assert value == pytest.approx(linear_predictivity(x, y), abs=0.1)
    assert math.isfinite(linear_predictivity(lonely, y))
    assert linear_predictivity(x, lonely) < 0.1


def test_the_null_permutes_the_target_and_leaves_the_decompositions(rng):
    x, y = related(rng, 40, 5, 4)
    method = resolve("linear_predictivity").method
    a, b = method.prepare(x), method.prepare(y)
    method.combine(a, b)
    kept = a.predictors
    for _ in range(3):
        order = rng.permutation(40)
        assert method.combine(a, method.permute(b, order)) == pytest.approx(
            linear_predictivity(x, y[order]), abs=1e-12
        )
    assert a.predictors is kept
    assert "predictors" not in vars(b)


def test_the_smallest_n_grows_with_the_folds():
    assert resolve("linear_predictivity").least == 6
    assert resolve("linear_predictivity(folds=12)").least == 12
    with pytest.raises(UsageError, match="x has 11 rows; at least 12 samples are needed"):
        linear_predictivity(np.eye(11), np.eye(11), folds=12)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("folds", 1, "linear_predictivity: folds must be a whole number of at least 2, got 1"),
        ("folds", 2.5, "folds must be a whole number of at least 2, got 2.5"),
        ("ridge", -1.0, r"linear_predictivity: ridge must be in \[0, inf\), got -1.0; choose a number there"),
        ("seed", -3, "seed must be a whole number of at least 0, got -3"),
    ],
)
def test_wrong_options_are_refused_with_what_is_right(option, value, message):
    with pytest.raises(UsageError, match=message):
        linear_predictivity(np.eye(9), np.eye(9), **{option: value})
