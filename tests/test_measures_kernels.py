"""Distances, kernel CKA and minibatch CKA against their textbook definitions, and where others go wrong."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from featlens.errors import FeatlensWarning, UsageError
from featlens.measures import MinibatchCKA, cka, cka_from_kernels, cka_minibatch, hsic_debiased
from featlens.measures.cka import KernelCKA, LinearCKA
from featlens.measures.declare import MEASURES, resolve
from featlens.measures.kernels import distances, median_distance, ranks, squared_distances, u_centred

OWN = ["cka", "cka(kernel=rbf)", "rsa", "rsa(comparison=kendall)", "distance_correlation"]
OWN += ["distance_correlation(estimator=biased)", "mutual_knn(k=3)", "jaccard_knn(k=3)", "cknna(k=3)"]


def related(rng, n, d1, d2):
    """Two feature sets that share a signal."""
    x = rng.normal(size=(n, d1))
    return x, x @ rng.normal(size=(d1, d2)) + d1**0.5 * rng.normal(size=(n, d2))


def textbook_distances(x):
    x = np.asarray(x, dtype=np.longdouble)
    return np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])


def textbook_kernel(x, factor=1.0):
    apart = textbook_distances(x)
    above = [apart[i, j] for i, j in itertools.combinations(range(len(x)), 2)]
    width = factor * np.median([value for value in above if value > 0])
    return np.exp(-(apart**2) / (2 * width**2))


def textbook_hsic(k, m):
    """Song et al. 2012, equation 5."""
    k, m = k.copy(), m.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    n, ones = len(k), np.ones(len(k), dtype=np.longdouble)
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + sums - 2 / np.longdouble(n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def textbook_biased(k, m):
    h = np.eye(len(k), dtype=np.longdouble) - 1 / np.longdouble(len(k))
    return np.trace(h @ k @ h @ m) / (len(k) - 1) ** 2


def textbook_cka(k, m, estimator):
    hsic = textbook_hsic if estimator == "debiased" else textbook_biased
    return float(hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m)))


def scaled_like(found, expected):
    """Distances come with an arbitrary common scale."""
    return found * (expected.max() / found.max())


@pytest.mark.parametrize(("n", "d", "mean"), [(4, 1, 0), (30, 5, 0), (25, 16, 100), (12, 3000, 100)])
def test_distances_are_right_to_the_smallest(rng, n, d, mean):
    x = rng.normal(size=(n, d)) + mean
    x[1] = x[0] + 1e-9 * rng.normal(size=d)
    x[3] = x[2]
    found, expected = distances(x), textbook_distances(x).astype(float)
    assert found[2, 3] == 0
    assert np.array_equal(found, found.T)
    np.testing.assert_allclose(scaled_like(found, expected), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-12, 1e12, 1e150])
def test_distances_neither_overflow_nor_vanish(rng, scale):
    x = rng.normal(size=(20, 4))
    expected = squareform(pdist(x))
    np.testing.assert_allclose(scaled_like(distances(scale * x), expected), expected, rtol=1e-12)


def test_many_equal_rows_are_found(rng):
    x = rng.normal(size=(6, 30))[rng.integers(0, 6, size=80)]
    expected = squareform(pdist(x))
    found = distances(x)
    assert np.array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(scaled_like(found, expected), expected, rtol=1e-12)


def test_the_median_is_that_of_non_zero_distances():
    squared = squared_distances(np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [4.0]]))
    # Distances 1 (six times), 4 (three times), 3 (twice) and four zeros.
    assert median_distance(squared) / math.sqrt(squared.max()) == pytest.approx(1 / 4)
    assert median_distance(np.zeros((4, 4))) == 0


def test_ranks_share_ties_up_to_rounding(rng):
    from scipy.stats import rankdata

    values = rng.integers(0, 9, size=300) / 3.0
    noise = 1 + 1e-15 * rng.integers(-3, 4, size=300)
    np.testing.assert_array_equal(ranks(values * noise), rankdata(values) - 1)


def test_u_centred_rows_sum_to_zero_and_give_the_unbiased_hsic(rng):
    x, y = related(rng, 9, 3, 2)
    a, b = (u_centred(side @ side.T + 5) for side in (x, y))
    assert np.abs(a.sum(axis=0)).max() < 1e-12
    assert np.array_equal(np.diag(a), np.zeros(9))
    assert (a * b).sum() / (9 * 6) == pytest.approx(hsic_debiased(x, y), rel=1e-10)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
@pytest.mark.parametrize("factor", [0.5, 1, 3])
@pytest.mark.parametrize(("n", "d1", "d2"), [(4, 2, 3), (30, 5, 8), (15, 400, 90)])
def test_rbf_cka_is_the_textbook_ratio(rng, n, d1, d2, factor, estimator):
    x, y = related(rng, n, d1, d2)
    expected = textbook_cka(textbook_kernel(x, factor), textbook_kernel(y, factor), estimator)
    found = cka(x, y, estimator=estimator, kernel="rbf", bandwidth=factor)
    assert found == pytest.approx(expected, abs=1e-10)
    narrow = cka(x.astype(np.float32), y.astype(np.float32), estimator, "rbf", factor)
    assert narrow == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_rbf_cka_in_ill_conditioned_cases(rng, estimator):
    x, y = related(rng, 30, 6, 7)
    far = [v + 100 * v.std() for v in (x, y)]
    expected = textbook_cka(textbook_kernel(x), textbook_kernel(y), estimator)
    assert cka(*far, estimator, "rbf") == pytest.approx(expected, abs=1e-10)
    single = [v.astype(np.float32) for v in far]
    assert cka(*single, estimator, "rbf") == pytest.approx(expected, abs=1e-5)
    assert cka(1e-12 * x, 1e12 * y, estimator, "rbf") == pytest.approx(expected, abs=1e-10)
    assert cka(np.hstack([x, x]), y, estimator, "rbf") == pytest.approx(expected, abs=1e-10)
    twice = [np.vstack([v, v]) for v in (x, y)]
    doubled = textbook_cka(*(textbook_kernel(v) for v in twice), estimator)
    assert cka(*twice, estimator, "rbf") == pytest.approx(doubled, abs=1e-10)


@pytest.mark.parametrize("factor", [1e3, 1e6, 1e9])
@pytest.mark.parametrize("estimator", ["debiased", "biased"])
def test_a_large_bandwidth_gives_the_linear_kernel(rng, estimator, factor):
    x, y = related(rng, 40, 5, 4)
    found = cka(x, y, estimator, "rbf", factor)
    assert found == pytest.approx(cka(x, y, estimator), abs=2e-5 if factor == 1e3 else 1e-10)


def test_the_kernel_matrix_of_the_linear_kernel_gives_linear_cka(rng):
    x, y = related(rng, 30, 40, 6)
    for estimator in ("debiased", "biased"):
        method = KernelCKA(estimator, "linear")
        found = method.combine(method.prepare(x), method.prepare(y))
        assert found == pytest.approx(cka(x, y, estimator), abs=1e-12)


def test_wide_unrelated_features_are_not_alike_to_the_median_bandwidth(rng):
    x, y = rng.normal(size=(60, 2000)), rng.normal(size=(60, 2000))
    assert abs(cka(x, y, kernel="rbf")) < 0.1


def test_rbf_sees_a_relation_that_the_linear_kernel_does_not(rng):
    angle = rng.uniform(0, 2 * np.pi, size=300)
    x, y = (np.c_[np.cos(k * angle), np.sin(k * angle)] for k in (1, 2))
    assert abs(cka(x, y)) < 0.02 < 0.1 < cka(x, y, kernel="rbf", bandwidth=0.5)


def test_cka_of_kernels_is_that_of_their_features(rng):
    x, y = (v + 9 for v in related(rng, 30, 5, 8))
    for estimator in ("debiased", "biased"):
        expected = cka(x, y, estimator)
        assert cka_from_kernels(x @ x.T, y @ y.T, estimator) == pytest.approx(expected, abs=1e-10)
        assert cka_from_kernels(1e200 * (x @ x.T), y @ y.T, estimator) == pytest.approx(expected, abs=1e-10)
        k, m = (np.exp(-squareform(pdist(v, "cityblock")) / 30) for v in (x, y))
        expected = textbook_cka(k.astype(np.longdouble), m.astype(np.longdouble), estimator)
        assert cka_from_kernels(k, m, estimator) == pytest.approx(expected, abs=1e-10)
        single = [v.astype(np.float32) for v in (k, m)]
        assert cka_from_kernels(*single, estimator) == pytest.approx(expected, abs=1e-5)


def test_the_diagonal_counts_for_the_biased_estimator_only(rng):
    x, y = related(rng, 30, 5, 8)
    k, m = x @ x.T, y @ y.T
    other = k + np.diag(rng.uniform(1, 50, size=30))
    assert cka_from_kernels(other, m) == pytest.approx(cka_from_kernels(k, m), abs=1e-12)
    assert abs(cka_from_kernels(other, m, "biased") - cka_from_kernels(k, m, "biased")) > 0.01


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (np.ones((9, 8)), r"k must be a kernel matrix \(n, n\), got shape \(9, 8\); for features use cka"),
        (np.triu(np.ones((9, 9))), "k is not symmetric, by 1 of its largest entry; symmetrise it"),
        (np.full((9, 9), np.nan), "row 0 of k holds NaN or infinity"),
        (np.eye(3), "k has 3 rows; at least 4 samples are needed"),
        (np.eye(8), "x has 8 rows and y 9"),
    ],
)
def test_wrong_kernels_are_refused(k, message):
    with pytest.raises(UsageError, match=message) as caught:
        cka_from_kernels(k, np.eye(9) if len(k) != 3 else np.eye(3))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="unknown estimator 'bias': did you mean 'biased'"):
        cka_from_kernels(np.eye(9), np.eye(9), "bias")


def test_kernels_without_signal_have_no_cka(rng):
    k = np.cov(rng.normal(size=(9, 30)))
    assert math.isnan(cka_from_kernels(np.full((9, 9), 0.1), k))
    assert math.isnan(cka_from_kernels(np.eye(9), k))
    assert math.isnan(cka_from_kernels(np.full((9, 9), 0.1), k, "biased"))
    assert cka_from_kernels(np.eye(9), k, "biased") > 0


# --- what holds for every measure of these families ---------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e9 / 3])
def test_constant_features_have_no_value(rng, name, value):
    measure, x = resolve(name), rng.normal(size=(40, 4))
    function = measure.measure.function
    assert math.isnan(function(np.full((40, 3), value), x, **measure.options))
    assert math.isnan(function(x, np.full((40, 3), value), **measure.options))


@pytest.mark.parametrize("name", OWN)
def test_torch_gives_what_numpy_gives(rng, name):
    torch = pytest.importorskip("torch")
    measure, (x, y) = resolve(name), related(rng, 25, 5, 6)
    x[3], y[7] = x[4], y[4]
    function = measure.measure.function
    value = function(torch.tensor(x), torch.tensor(y), **measure.options)
    assert isinstance(value, float)
    assert value == pytest.approx(function(x, y, **measure.options), abs=1e-12)


@pytest.mark.parametrize("name", OWN)
def test_a_permuted_state_is_that_of_permuted_rows(rng, name):
    method, (x, y) = resolve(name).method, related(rng, 25, 5, 6)
    a, b = method.prepare(x), method.prepare(y)
    order = rng.permutation(25)
    expected = method.combine(a, method.prepare(y[order]))
    assert method.combine(a, method.permute(b, order)) == pytest.approx(expected, abs=1e-12)


def test_methods_tell_what_they_are():
    assert resolve("cka").method == LinearCKA("debiased", "linear", 1.0)
    assert resolve("cka(kernel=rbf, bandwidth=2)").method == KernelCKA("debiased", "rbf", 2.0)
    assert resolve("cka(kernel=rbf, bandwidth=2)").name == "cka(kernel='rbf', bandwidth=2)"
    assert resolve("rsa(distance=cosine)").method.distance == "cosine"
    assert resolve("distance_correlation").method.estimator == "debiased"
    assert {"cka", "rsa", "distance_correlation", "mutual_knn", "jaccard_knn", "cknna"} <= set(MEASURES)


# --- minibatches --------------------------------------------------------------------------------------------


def textbook_minibatch(batches):
    sums = np.zeros(3, dtype=np.longdouble)
    for x, y in batches:
        k, m = (np.asarray(v, dtype=np.longdouble) @ v.T for v in (x, y))
        sums += [textbook_hsic(k, m), textbook_hsic(k, k), textbook_hsic(m, m)]
    return float(sums[0] / np.sqrt(sums[1] * sums[2]))


@pytest.mark.parametrize("sizes", [(50,), (4, 4, 30), (16, 16, 16, 9)])
def test_minibatch_cka_is_the_ratio_of_sums(rng, sizes):
    batches = [related(rng, n, 6, 5) for n in sizes]
    expected = textbook_minibatch(batches)
    assert cka_minibatch(batches) == pytest.approx(expected, abs=1e-10)
    singles = [(x.astype(np.float32), y.astype(np.float32)) for x, y in batches]
    assert cka_minibatch(singles) == pytest.approx(expected, abs=1e-5)
    for scale in (1e-160, 1e160):
        assert cka_minibatch((scale * x, y) for x, y in batches) == pytest.approx(expected, abs=1e-10)
    assert cka_minibatch((x + 100, y - 100) for x, y in batches) == pytest.approx(expected, abs=1e-10)


def test_batches_keep_their_scale_among_each_other(rng):
    batches = [related(rng, 20, 6, 5) for _ in range(3)]
    batches[1] = 10 * batches[1][0], batches[1][1]
    assert cka_minibatch(batches) == pytest.approx(textbook_minibatch(batches), abs=1e-10)
    constant = (np.ones((9, 6)), np.ones((9, 5)))
    assert cka_minibatch([constant, *batches]) == pytest.approx(cka_minibatch(batches), abs=1e-12)


def test_small_batches_of_independent_wide_features_are_not_alike(rng):
    batches = [(rng.normal(size=(16, 512)), rng.normal(size=(16, 512))) for _ in range(60)]
    assert abs(cka_minibatch(batches)) < 0.05
    assert np.mean([cka(x, y, "biased") for x, y in batches]) > 0.9


def test_a_rest_of_fewer_than_four_is_skipped_and_counted(rng):
    x, y = related(rng, 35, 6, 5)
    parts = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 35, 16)]
    found = MinibatchCKA()
    for part in parts[:2]:
        found.update(*part)
    before = found.value
    with pytest.warns(FeatlensWarning, match="a batch of 3 samples was skipped, at least 4") as caught:
        found.update(*parts[2])
    assert caught[0].filename == __file__
    assert (found.batches, found.samples, found.skipped, found.value) == (2, 32, 3, before)
    with pytest.warns(FeatlensWarning, match="skipped") as caught:
        assert cka_minibatch(parts) == before
    assert caught[0].filename == __file__


def test_minibatches_without_signal_or_of_other_sites(rng):
    found = MinibatchCKA()
    with pytest.raises(UsageError, match="no batch of at least 4 samples so far; add some"):
        _ = found.value
    found.update(np.full((9, 2), 0.1), rng.normal(size=(9, 3)))
    assert math.isnan(found.value)
    with pytest.raises(UsageError, match=r"widths \[3, 3\] after others of \[2, 3\]; all batches must"):
        found.update(np.ones((9, 3)), np.ones((9, 3)))
    with pytest.raises(UsageError, match="row 1 of y holds NaN"):
        found.update(np.ones((9, 2)), np.where(np.arange(27).reshape(9, 3) == 4, np.nan, 1))
    with pytest.raises(UsageError, match="x has 9 rows and y 8"):
        found.update(np.ones((9, 2)), np.ones((8, 3)))
