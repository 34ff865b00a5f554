"""CKA against its textbook definition, its invariances, and the cases in which other packages go wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens.measures import cka, hsic_debiased

SEEDS = st.integers(0, 2**32 - 1)


def textbook_hsic(x, y):
    """Song et al. 2012, equation 5, with explicit n x n kernel matrices in extended precision."""
    x, y = (np.asarray(v, dtype=np.longdouble) for v in (x, y))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n = len(x)
    ones = np.ones(n, dtype=np.longdouble)
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + sums - 2 / np.longdouble(n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def textbook_cka(x, y):
    return float(textbook_hsic(x, y) / np.sqrt(textbook_hsic(x, x) * textbook_hsic(y, y)))


def textbook_biased(x, y):
    """Kornblith et al. 2019, equation 1, with an explicit centring matrix."""
    n = len(x)
    h = np.eye(n) - 1 / n
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return np.trace(k @ m) / np.sqrt(np.trace(k @ k) * np.trace(m @ m))


def related(rng, n, d1, d2, noise=1.0):
    """Two feature sets that share a signal."""
    x = rng.normal(size=(n, d1))
    return x, x @ rng.normal(size=(d1, d2)) + noise * d1**0.5 * rng.normal(size=(n, d2))


def orthogonal(rng, d):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


@pytest.mark.parametrize(
    ("n", "d1", "d2"), [(4, 1, 1), (4, 3, 7), (5, 2, 2), (30, 4, 9), (64, 100, 3), (20, 2000, 900)]
)
def test_debiased_cka_is_the_textbook_ratio(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    assert cka(x, y) == pytest.approx(textbook_cka(x, y), abs=1e-10)


@pytest.mark.parametrize(("n", "d1", "d2"), [(4, 2, 3), (25, 40, 6)])
def test_hsic_debiased_is_the_textbook_sum(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    assert hsic_debiased(x, y) == pytest.approx(float(textbook_hsic(x, y)), rel=1e-10)


def test_hsic_debiased_scales_with_the_features(rng):
    x, y = related(rng, 30, 4, 4)
    assert hsic_debiased(3 * x, y) == pytest.approx(9 * hsic_debiased(x, y), rel=1e-12)


@pytest.mark.parametrize(("n", "d1", "d2"), [(2, 3, 3), (30, 5, 8), (20, 300, 4)])
def test_biased_cka_is_the_textbook_ratio(rng, n, d1, d2):
    x, y = related(rng, n, d1, d2)
    assert cka(x, y, estimator="biased") == pytest.approx(textbook_biased(x, y), abs=1e-10)


def test_float32_features_agree_with_float64(rng):
    x, y = related(rng, 200, 64, 32)
    assert cka(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(cka(x, y), abs=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_a_hundred_times_the_spread_costs_no_digits(rng, dtype):
    x, y = ((v + 100 * v.std()).astype(dtype) for v in related(rng, 100, 16, 16))
    # The textbook sum itself would cancel: its features are centred first, in extended precision.
    centred = [v - v.mean(axis=0) for v in (x.astype(np.longdouble), y.astype(np.longdouble))]
    assert cka(x, y) == pytest.approx(textbook_cka(*centred), abs=1e-10)


def test_float32_with_a_far_mean_agrees_with_float64(rng):
    x, y = (v + 100 * v.std() for v in related(rng, 100, 16, 16))
    assert cka(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(cka(x, y), abs=1e-5)


def test_duplicated_features_and_samples_are_no_special_case(rng):
    x, y = related(rng, 40, 5, 6)
    assert cka(np.hstack([x, x]), y) == pytest.approx(cka(x, y), abs=1e-12)
    twice = np.vstack([x, x]), np.vstack([y, y])
    assert cka(*twice) == pytest.approx(textbook_cka(*twice), abs=1e-10)


@pytest.mark.parametrize("scale", [1e-20, 1e-160, 1e160])
def test_scale_of_the_features_does_not_matter(rng, scale):
    x, y = related(rng, 50, 6, 7)
    assert cka(scale * x, y) == pytest.approx(cka(x, y), abs=1e-12)
    assert cka(scale * x, scale * x) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e9 / 3])
def test_constant_features_have_no_similarity(rng, estimator, value):
    # 0.1 is the hard one: the mean of fifty 0.1 is not 0.1, and what is left must not count as signal.
    assert np.isnan(cka(np.full((50, 3), value), rng.normal(size=(50, 4)), estimator=estimator))
    assert np.isnan(cka(rng.normal(size=(50, 4)), np.full((50, 3), value), estimator=estimator))


def test_constant_columns_beside_real_ones_change_nothing(rng):
    x, y = related(rng, 50, 4, 4)
    padded = np.hstack([1e-9 * x, np.full((50, 2), 1e5 / 3)])
    assert cka(padded, y) == pytest.approx(cka(x, y), abs=1e-6)


@pytest.mark.parametrize("n", [4, 7, 11, 50])
def test_samples_at_equal_distances_have_no_similarity(rng, n):
    assert np.isnan(cka(np.eye(n), rng.normal(size=(n, 3))))
    assert np.isnan(cka(3 * orthogonal(rng, n), np.eye(n)))


def test_independent_wide_features_look_alike_only_to_the_biased_estimator(rng):
    x, y = rng.normal(size=(32, 8000)), rng.normal(size=(32, 8000))
    assert cka(x, y, estimator="biased") > 0.98
    assert abs(cka(x, y)) < 0.15


def test_negative_values_are_not_clamped(rng):
    values = [cka(rng.normal(size=(12, 20)), rng.normal(size=(12, 20))) for _ in range(40)]
    assert min(values) < -0.05
    assert abs(np.mean(values)) < 0.1


@given(SEEDS, st.integers(4, 30), st.integers(1, 12), st.integers(1, 12))
def test_cka_is_invariant_to_shift_rotation_scale_and_joint_row_order(seed, n, d1, d2):
    rng = np.random.default_rng(seed)
    x, y = related(rng, n, d1, d2)
    expected = cka(x, y)
    order = rng.permutation(n)
    assert cka(x + rng.normal(size=d1), y) == pytest.approx(expected, abs=1e-9)
    assert cka(x @ orthogonal(rng, d1), y @ orthogonal(rng, d2)) == pytest.approx(expected, abs=1e-9)
    assert cka(rng.uniform(0.01, 100) * x, -y) == pytest.approx(expected, abs=1e-9)
    assert cka(x[order], y[order]) == pytest.approx(expected, abs=1e-9)


@given(SEEDS, st.integers(4, 30), st.integers(1, 12), st.integers(1, 12))
def test_cka_is_symmetric_at_most_one_and_one_with_itself(seed, n, d1, d2):
    x, y = related(np.random.default_rng(seed), n, d1, d2)
    assert cka(x, y) == pytest.approx(cka(y, x), abs=1e-12)
    assert cka(x, y) <= 1 + 1e-12
    assert cka(x, x) == pytest.approx(1, abs=1e-12)


def test_scaling_single_features_does_change_cka(rng):
    x, y = related(rng, 60, 6, 6)
    assert abs(cka(x * np.geomspace(0.01, 100, 6), y) - cka(x, y)) > 0.01


def test_row_order_of_one_side_alone_does_change_cka(rng):
    x, y = related(rng, 60, 6, 6)
    assert cka(x, y) > cka(x, y[::-1]) + 0.2


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "int32"])
def test_torch_tensors_give_what_numpy_gives(rng, estimator, kind):
    torch = pytest.importorskip("torch")
    x, y = (torch.tensor(8 * v).to(getattr(torch, kind)) for v in related(rng, 40, 5, 6))
    same = [v.to(torch.float64).numpy() for v in (x, y)]
    value = cka(x, y, estimator=estimator)
    assert isinstance(value, float)
    assert value == pytest.approx(cka(*same, estimator=estimator), abs=1e-12)


def test_torch_tensors_that_require_gradients_are_measured_as_they_are(rng):
    torch = pytest.importorskip("torch")
    x = torch.tensor(rng.normal(size=(20, 3)), requires_grad=True)
    assert cka(x, x) == pytest.approx(1, abs=1e-12)


def test_inputs_are_left_as_they_were(rng):
    x, y = related(rng, 20, 3, 3)
    before = x.copy(), y.copy()
    cka(x, y)
    assert np.array_equal(x, before[0])
    assert np.array_equal(y, before[1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            [[1.0]],
            np.ones((4, 1)),
            "expected numpy arrays or torch tensors, all of one kind, got list and ndarray",
        ),
        (np.ones((3, 2)), np.ones((3, 2)), "x has 3 rows; at least 4 samples are needed"),
        (np.ones((9, 2)), np.ones((8, 2)), "x has 9 rows and y 8; row i of both must be"),
        (np.ones((9, 2)), np.ones((9, 2, 2, 2)), r"y must be \(n, d\) with d > 0, got shape \(9, 2, 2, 2\)"),
        (np.ones((9, 0)), np.ones((9, 2)), r"x must be \(n, d\) with d > 0, got shape \(9, 0\)"),
        (
            np.ones((9, 2)),
            np.where(np.arange(18).reshape(9, 2) == 7, np.nan, 1),
            "row 3 of y holds NaN or infinity",
        ),
    ],
)
def test_wrong_features_are_refused_in_one_line(x, y, message):
    for measure in (cka, hsic_debiased):
        with pytest.raises(UsageError, match=message) as caught:
            measure(x, y)
        assert "\n" not in str(caught.value)


def test_mixed_kinds_of_arrays_are_refused(rng):
    torch = pytest.importorskip("torch")
    with pytest.raises(UsageError, match="all of one kind, got Tensor and ndarray"):
        cka(torch.ones(9, 2), np.ones((9, 2)))


def test_unknown_estimator_and_kernel_name_the_nearest():
    with pytest.raises(UsageError, match="unknown estimator 'debiasd': did you mean 'debiased' or 'biased'"):
        cka(np.eye(9), np.eye(9), estimator="debiasd")
    with pytest.raises(UsageError, match="unknown kernel 'linaer': did you mean 'linear'"):
        cka(np.eye(9), np.eye(9), kernel="linaer")


@pytest.mark.parametrize("bandwidth", [0, -1.0, np.inf, np.nan, "1", True, None])
def test_a_bandwidth_is_a_number_above_zero(bandwidth):
    with pytest.raises(UsageError, match="bandwidth must be a finite number above 0, got"):
        cka(np.eye(9), np.eye(9), kernel="rbf", bandwidth=bandwidth)


def test_the_linear_kernel_has_no_bandwidth():
    with pytest.raises(UsageError, match="the linear kernel has no bandwidth, got 2; leave it out"):
        cka(np.eye(9), np.eye(9), bandwidth=2)
