"""Frechet distance and KID against closed forms, references and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens_trainers.evaluation import frechet, frechet_infinity, kernel, kernel_distance_blocks
from featlens_trainers.quality import Quality, frechet_distance, kernel_distance, quality


def reference_frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook formula with a general matrix square root."""
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(first + second - 2 * np.real(root)))


def naive_kid(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    across = sum(kernel(a, b) for a in x for b in y) / (n * m)
    return within_x + within_y - 2 * across


def correlated(rng: np.random.Generator, n: int, d: int, shift: float = 0.0) -> np.ndarray:
    return shift + rng.normal(size=(n, d)) @ rng.normal(size=(d, d))


def exactly(mean: np.ndarray, covariance: np.ndarray, n: int = 64) -> np.ndarray:
    """Rows whose sample mean and (unbiased) sample covariance are the given ones."""
    rows = np.random.default_rng(0).normal(size=(n, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(rows, rowvar=False)))).T
    return mean + rows @ np.linalg.cholesky(covariance).T


# --- Frechet distance ---------------------------------------------------------------------------------------


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    first, second = np.array([1.0, 4.0, 0.25]), np.array([2.25, 1.0, 9.0])
    means = np.array([1.0, 0.0, -1.0]), np.array([0.0, 0.5, 1.0])
    x, y = exactly(means[0], np.diag(first)), exactly(means[1], np.diag(second))
    expected = ((means[0] - means[1]) ** 2).sum() + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [2, 5, 16])
def test_frechet_distance_agrees_with_the_general_matrix_root(rng: np.random.Generator, d: int) -> None:
    x, y = correlated(rng, 200, d), correlated(rng, 150, d, shift=0.5)
    assert frechet_distance(x, y) == pytest.approx(reference_frechet(x, y), rel=1e-6)


def test_frechet_distance_of_singular_gaussians() -> None:
    # On orthogonal lines the cross term is 0; on the same line it is the product of the spreads.
    along = [exactly(np.zeros(1), np.array([[variance]])) for variance in (4.0, 9.0)]
    x = np.pad(along[0], ((0, 0), (0, 2)))
    across = np.pad(along[1], ((0, 0), (1, 1)))
    same = np.pad(along[1], ((0, 0), (0, 2)))
    assert frechet_distance(x, across) == pytest.approx(4 + 9, rel=1e-6)
    assert frechet_distance(x, same) == pytest.approx((3 - 2) ** 2, rel=1e-6)
    constant = np.tile([1.0, 2.0, 3.0], (10, 1))
    assert frechet_distance(constant, constant + 1.0) == pytest.approx(3.0)


def test_frechet_distance_with_fewer_images_than_features(rng: np.random.Generator) -> None:
    x, y = correlated(rng, 10, 24), correlated(rng, 12, 24)
    # The trace of the root of S_x S_y is the nuclear norm of the product of the centred, scaled rows.
    rows = [(a - a.mean(0)) / np.sqrt(len(a) - 1) for a in (x, y)]
    nuclear = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + sum((r**2).sum() for r in rows) - 2 * nuclear
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_one_feature() -> None:
    x, y = exactly(np.array([1.0]), np.array([[4.0]])), exactly(np.array([0.0]), np.array([[1.0]]))
    assert frechet_distance(x, y) == pytest.approx(1 + 1)


@given(st.integers(0, 10_000))
def test_frechet_distance_is_symmetric_and_blind_to_rotation_shift_and_order(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    x, y = correlated(numbers, 30, 6), correlated(numbers, 40, 6, shift=1.0)
    distance = frechet_distance(x, y)
    rotation = np.linalg.qr(numbers.normal(size=(6, 6)))[0]
    assert frechet_distance(y, x) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(x @ rotation + 5, y @ rotation + 5) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(numbers.permutation(x), y) == pytest.approx(distance, rel=1e-7)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * distance, rel=1e-7)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6 * np.trace(np.cov(x, rowvar=False)))
    assert distance > 0


def test_frechet_distance_in_float32_is_computed_in_float64(rng: np.random.Generator) -> None:
    x, y = (correlated(rng, 100, 8, shift=1000.0).astype(np.float32) for _ in range(2))
    assert frechet_distance(x, y) == frechet_distance(x.astype(np.float64), y.astype(np.float64))


def test_frechet_distance_with_an_outlier_and_features_of_very_different_scales(rng) -> None:
    scales = 10.0 ** np.arange(-4, 5)
    x, y = (exactly(shift * scales, np.diag(scale * scales**2), 200) for shift, scale in ((0, 1), (0.5, 4)))
    expected = ((0.5**2 + (2 - 1) ** 2) * scales**2).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    far = np.vstack([x, 1e9 * np.ones((1, 9))])
    assert frechet_distance(far, far) == pytest.approx(0, abs=1e-6 * np.trace(np.cov(far, rowvar=False)))


def test_the_covariance_of_large_sets_is_summed_in_blocks(rng, monkeypatch) -> None:
    x, y = correlated(rng, 101, 6, shift=1000.0), correlated(rng, 57, 6)
    whole = frechet_distance(x, y)
    monkeypatch.setattr(frechet, "AT_ONCE", 10)
    monkeypatch.setattr(frechet, "block_rows", lambda columns: 7)
    assert frechet_distance(x, y) == pytest.approx(whole, rel=1e-10)


def test_extrapolation_takes_the_bias_away(rng) -> None:
    d, shift = 8, 0.3
    truth = d * shift**2
    plain, endless, errors = [], [], []
    for _ in range(30):
        x, y = rng.normal(size=(200, d)), rng.normal(size=(150, d)) + shift
        plain.append(frechet_distance(x, y))
        found = frechet_infinity(x, y, points=9)
        endless.append(found.value)
        errors.append(found.error)
    bias, left = np.mean(plain) - truth, np.mean(endless) - truth
    assert bias > 4 * np.std(plain) / np.sqrt(30)
    assert abs(left) < 0.4 * bias
    assert min(errors) > 0
    with pytest.raises(UsageError, match="at least 3 points"):
        frechet_infinity(x, y, points=2)
    with pytest.raises(UsageError, match="n, m >= 8"):
        frechet_infinity(x[:7], y)


# --- KID ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 3), (12, 4, 1), (2, 2, 20)])
def test_kid_agrees_with_the_double_sum(rng: np.random.Generator, n: int, m: int, d: int) -> None:
    x, y = rng.normal(size=(n, d)), rng.normal(size=(m, d)) + 0.3
    assert kernel_distance(x, y) == pytest.approx(naive_kid(x, y), rel=1e-9, abs=1e-12)


def test_kid_is_unbiased_even_for_few_images(rng: np.random.Generator) -> None:
    values = [kernel_distance(rng.normal(size=(6, 4)), rng.normal(size=(8, 4))) for _ in range(4000)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0 < max(values)
    # A biased estimator, which keeps the diagonal, is off by far more than that.
    assert error < 0.05


def test_kid_grows_with_the_gap_and_is_blind_to_rotation(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(60, 4))
    values = [kernel_distance(x, y + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    assert kernel_distance(x @ rotation, y @ rotation) == pytest.approx(kernel_distance(x, y), abs=1e-9)


def test_kid_in_blocks_of_rows_is_the_same(rng, monkeypatch) -> None:
    x, y = rng.normal(size=(23, 5)), rng.normal(size=(17, 5)) + 0.2
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kernel, "block_rows", lambda columns: 4)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)


def test_kid_of_parts_is_that_of_their_rows(rng, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "block_rows", lambda columns: 5)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(9, 3)) + 0.5
    x_parts, y_parts = rng.random((6, 12)) < 0.5, rng.random((6, 9)) < 0.6
    x_parts[:, :2] = y_parts[:, :2] = True
    found = kernel.kernel_distance_parts(x, y, x_parts, y_parts)
    wanted = [naive_kid(x[a], y[b]) for a, b in zip(x_parts, y_parts, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)
    x_parts[3] = False
    with pytest.raises(UsageError, match="at least two rows"):
        kernel.kernel_distance_parts(x, y, x_parts, y_parts)


def test_blocks_are_disjoint_and_their_error_is_that_of_a_mean(rng) -> None:
    values, errors = [], []
    for seed in range(60):
        x, y = rng.normal(size=(80, 4)), rng.normal(size=(100, 4)) + 0.4
        found = kernel_distance_blocks(x, y, block=8, seed=seed)
        assert (found.block, found.blocks) == (8, 10)
        values.append(found.value)
        errors.append(found.error)
    whole = [kernel_distance(rng.normal(size=(80, 4)), rng.normal(size=(100, 4)) + 0.4) for _ in range(60)]
    assert np.mean(values) == pytest.approx(np.mean(whole), abs=4 * np.std(values) / np.sqrt(60))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.35)


def test_the_size_of_blocks(rng) -> None:
    x = rng.normal(size=(300, 2))
    assert kernel_distance_blocks(x, x[:250]).block == 25
    one = kernel_distance_blocks(x[:20], x[20:40], block=20)
    assert one.value == pytest.approx(kernel_distance(x[:20], x[20:40])) and np.isnan(one.error)
    for size in (1, 251):
        with pytest.raises(UsageError, match=f"2 to 250 rows, got {size}"):
            kernel_distance_blocks(x, x[:250], block=size)


# --- both ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_values_that_are_not_finite_are_named(distance, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    y[4, 1] = np.nan
    with pytest.raises(UsageError, match="row 4 of the second feature set"):
        distance(x, y)
    x[2] = np.inf
    with pytest.raises(UsageError, match="row 2 of the first feature set"):
        distance(x, y)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("shapes", [((5, 3), (5, 4)), ((1, 3), (5, 3)), ((5, 3), (0, 3)), ((5,), (5,))])
def test_sets_that_cannot_be_compared_are_refused_with_their_shapes(distance, shapes) -> None:
    with pytest.raises(UsageError) as caught:
        distance(*(np.ones(shape) for shape in shapes))
    assert str(shapes[0]) in str(caught.value)
    assert str(shapes[1]) in str(caught.value)


def test_quality_holds_both_distances_and_what_they_rest_on(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(30, 3))
    found = quality(x, y)
    assert found == Quality(frechet_distance(x, y), kernel_distance(x, y), 20, 30)
    assert found.to_dict() == {
        "frechet": found.frechet,
        "kid": found.kid,
        "generated": 20,
        "reference": 30,
    }
