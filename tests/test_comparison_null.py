"""Null levels: every shift is the permutation it stands for, and p-values keep their promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest

from featlens import compare
from featlens.comparison import plan
from featlens.comparison.null import orders_for, shifts_of_forms, shifts_of_matrices
from featlens.measures import mutual_knn, procrustes, rsa
from featlens.seeds import derive
from tests.engine_helpers import (
    FORMS,
    NAMED,
    ROOT,
    WIDTH,
    brute,
    features,
    groups,
    handles,
    precise,
    unrelated,
    values,
)


def moved(order, shift):
    """Permutation pi with pi(order[i]) = order[i + shift]."""
    out = np.empty(len(order), dtype=int)
    out[order] = np.roll(order, -shift)
    return out


def permuted(a, b, form, permutation):
    some = {site: x[permutation] for site, x in b.items()}
    return brute(a, some, form)


@pytest.mark.parametrize("form", [*FORMS, ROOT], ids=str)
@pytest.mark.parametrize("n", [4, 20, 21])
@pytest.mark.parametrize("memory", [1, 1e9])
def test_every_shift_is_its_permutation(form, n, memory):
    a, b = features(n)
    order = np.random.default_rng(n).permutation(n)
    found = shifts_of_forms(
        handles(a, b), [tuple(groups(a, b))], [form], [[WIDTH] * 5], order, "float64", memory
    )[0][0]
    assert found.shape == (n - 1, 3, 2)
    for shift in range(1, n):
        np.testing.assert_allclose(found[shift - 1], permuted(a, b, form, moved(order, shift)), atol=3e-7)


@pytest.mark.parametrize("n", [70, 131])
def test_many_blocks_of_diagonals(n):
    a, b = features(n, ((3, 5), (4,)))
    order = np.random.default_rng(n).permutation(n)
    sites, pair = handles(a, b), tuple(groups(a, b))
    for form in (FORMS[0], FORMS[3], FORMS[-1]):
        for dtype in ("float64", "float32"):
            for memory in (1, 2e4, 1e9):
                found = shifts_of_forms(sites, [pair], [form], [[WIDTH] * 3], order, dtype, memory)[0][0]
                for shift in (1, n // 2, n - 1):
                    truth = permuted(a, b, form, moved(order, shift))
                    np.testing.assert_allclose(
                        found[shift - 1], truth, atol=3e-7 if dtype[-1] == "4" else 3e-6
                    )


def test_several_pairs_and_forms_share_the_permutations():
    models = features(15, ((3, 5), (4,), (6, 2)))
    order, where = np.random.default_rng(0).permutation(15), groups(*models)
    pairs = [(where[0], where[1]), (where[2], where[0])]
    forms = [FORMS[0], FORMS[5]]
    found = shifts_of_forms(handles(*models), pairs, forms, [[1.0] * 5] * 2, order, "float64", 1e9)
    for form, by_pair in zip(forms, found, strict=True):
        for (i, j), null in zip(((0, 1), (2, 0)), by_pair, strict=True):
            truth = permuted(models[i], models[j], form, moved(order, 7))
            np.testing.assert_allclose(null[6], truth, atol=3e-7)


def test_an_order_of_some_samples_is_about_these():
    a, b = features(40)
    order = np.random.default_rng(0).permutation(40)[:15]
    form = FORMS[1]
    found = shifts_of_forms(handles(a, b), [tuple(groups(a, b))], [form], [[1.0] * 5], order, "float64", 1e9)
    some = ({site: x[order] for site, x in side.items()} for side in (a, b))
    truth = permuted(*some, form, moved(np.arange(15), 4))
    np.testing.assert_allclose(found[0][0][3], truth, atol=3e-7)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("n", [9, 16])
@pytest.mark.parametrize("memory", [1, 1e9])
def test_matrices_of_any_kind_are_shifted(symmetric, n, memory):
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(n, n)) for _ in range(3)]
    if symmetric:
        matrices = [matrix + matrix.T for matrix in matrices]
    order = rng.permutation(n)
    found = shifts_of_matrices(matrices, [(slice(0, 2), slice(1, 3))], order, memory)[0]
    for shift in range(1, n):
        where = np.ix_(*[moved(order, shift)] * 2)
        truth = [[(k * m[where]).sum() for m in matrices[1:]] for k in matrices[:2]]
        np.testing.assert_allclose(found[shift - 1], truth, rtol=1e-5, atol=1e-4)


def test_orders_make_at_least_so_many_permutations():
    rng = np.random.default_rng(0)
    assert [len(orders_for(11, count, rng)) for count in (0, 1, 10, 11, 1000)] == [0, 1, 1, 2, 100]
    first, second = orders_for(11, 11, rng)
    assert sorted(first) == sorted(second) == list(range(11))
    assert not np.array_equal(first, second)
    assert orders_for(1, 10, rng) == []


def explicit(value, nulls, sign=1):
    """Textbook columns from (permutations, A, B) values."""
    reached = (sign * nulls >= sign * value - 1e-6).sum(axis=0)
    top = (sign * nulls).max(axis=(1, 2))
    family = (top[:, None, None] >= sign * value - 1e-6).sum(axis=0)
    return {
        "null": nulls.mean(axis=0),
        "null_high": np.quantile(nulls, 0.95 if sign > 0 else 0.05, axis=0),
        "p": (1 + reached) / (1 + len(nulls)),
        "p_family": (1 + family) / (1 + len(nulls)),
    }


@pytest.mark.parametrize(("name", "form"), NAMED)
@pytest.mark.parametrize("n", [13, 14])
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_columns_of_a_kernel_measure(monkeypatch, name, form, n, made):
    precise(monkeypatch, made)
    a, b = features(n)
    panel = compare({"a": a, "b": b}, name, permutations=25, seed=6, intervals=False).panel()
    rng = np.random.default_rng(derive(6, "permutations"))
    orders = [rng.permutation(n) for _ in range(math.ceil(25 / (n - 1)))]
    nulls = [permuted(a, b, form, moved(order, shift)) for order in orders for shift in range(1, n)]
    for quantity, truth in explicit(brute(a, b, form), np.array(nulls)).items():
        np.testing.assert_allclose(panel.arrays[quantity][0], truth, atol=1e-5, err_msg=quantity)
    assert panel.how["null"].startswith("at least 25 cyclic shifts")


def test_columns_of_a_measure_of_matrices():
    n = 14
    a, b = features(n)
    panel = compare({"a": a, "b": b}, "rsa", permutations=20, seed=6, intervals=False).panel()
    rng = np.random.default_rng(derive(6, "permutations"))
    orders = [rng.permutation(n) for _ in range(2)]
    nulls = [
        [[rsa(x, y[moved(order, shift)]) for y in b.values()] for x in a.values()]
        for order in orders
        for shift in range(1, n)
    ]
    value = np.array([[rsa(x, y) for y in b.values()] for x in a.values()])
    for quantity, truth in explicit(value, np.array(nulls)).items():
        np.testing.assert_allclose(panel.arrays[quantity][0], truth, atol=1e-5, err_msg=quantity)


@pytest.mark.parametrize(
    ("name", "function", "sign"), [("procrustes", procrustes, -1), ("mutual_knn(k=2)", None, 1)]
)
def test_columns_of_other_measures(name, function, sign):
    n, count = 14, 30
    function = function or (lambda x, y: mutual_knn(x, y, k=2))
    a, b = features(n)
    panel = compare({"a": a, "b": b}, name, permutations=count, seed=6, intervals=False).panel()
    rng = np.random.default_rng(derive(6, "permutations"))
    if name == "procrustes":
        moves = [rng.permutation(n) for _ in range(count)]
        assert panel.how["null"].startswith("at least 30 random permutations")
    else:
        orders = [rng.permutation(n) for _ in range(math.ceil(count / (n - 1)))]
        moves = [moved(order, shift) for order in orders for shift in range(1, n)]
        if "cyclic" not in panel.how["null"]:
            rng = np.random.default_rng(derive(6, "permutations"))
            moves = [rng.permutation(n) for _ in range(count)]
    nulls = [[[function(x, y[move]) for y in b.values()] for x in a.values()] for move in moves]
    value = np.array([[function(x, y) for y in b.values()] for x in a.values()])
    for quantity, truth in explicit(value, np.array(nulls), sign).items():
        np.testing.assert_allclose(panel.arrays[quantity][0], truth, atol=1e-5, err_msg=quantity)


def test_a_null_level_can_be_left_out():
    a, b = features(20)
    for name in ("cka", "rsa", "procrustes"):
        panel = compare({"a": a, "b": b}, name, permutations=0, resamples=0).panel()
        assert panel.how["null"] == "none"
        for quantity in ("null", "null_high", "p", "p_family", "q"):
            assert np.isnan(panel.arrays[quantity]).all()


@pytest.mark.parametrize("name", ["cka", "cka(kernel=rbf)", "distance_correlation"])
def test_a_null_level_from_some_samples_has_the_spread_of_that_from_all(monkeypatch, name):
    models = unrelated(360, ((5, 20), (8, 40)), seed=1)
    full = compare(models, name, permutations=1500, intervals=False)
    monkeypatch.setattr(plan, "NULL_ROWS", 120)
    part = compare(models, name, permutations=1500, intervals=False)
    assert "on a random 120 of 360 samples, scaled by 0.333" in part.panel().how["null"]
    np.testing.assert_array_equal(values(part), values(full))
    high, wanted = (result.panel().arrays["null_high"] for result in (part, full))
    np.testing.assert_allclose(high, wanted, rtol=0.25)
    assert np.abs(part.panel().arrays["null"]).max() < 0.1 * wanted.min()


def test_a_null_level_of_biased_values_is_from_all_samples(monkeypatch):
    monkeypatch.setattr(plan, "NULL_ROWS", 40)
    models = unrelated(80, ((100,), (100,)), seed=1)
    for name in ("cka(estimator=biased)", "distance_correlation(estimator=biased)"):
        panel = compare(models, name, permutations=200, intervals=False).panel()
        assert "scaled" not in panel.how["null"]
        assert panel.arrays["null"][0, 0, 0] == pytest.approx(panel.arrays["value"][0, 0, 0], rel=0.1)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cka", 15),
        ("cka", 60),
        ("cka(kernel=rbf)", 15),
        ("rsa(distance=euclidean,comparison=pearson)", 60),
        ("rsa", 15),
        ("procrustes", 15),
    ],
)
def test_p_values_are_uniform_where_nothing_is_shared(name, count):
    trials, found = 160, []
    for seed in range(trials):
        rng = np.random.default_rng([seed, count])
        # Heavy tails: what is promised does not depend on the distribution.
        x, y = (rng.standard_t(3, size=(16, d)) for d in (3, 4))
        result = compare({"a": {"s": x}, "b": {"s": y}}, name, permutations=count, intervals=False, seed=seed)
        found.append(result.cells()[0]["p"])
    found = np.array(found)
    assert found.min() >= 1 / (count + 1)
    assert found.max() <= 1
    # p is on a grid of steps 1 / (count + 1): spread evenly over each step.
    spread = found - np.random.default_rng(0).random(trials) / (count + 1)
    assert kstest(spread, "uniform").pvalue > 0.002
    for level in (0.1, 0.25):
        slack = 3.3 * (level * (1 - level) / trials) ** 0.5
        assert np.mean(found <= level) <= level + slack


def test_a_search_over_all_cells_finds_nothing_by_chance():
    trials, by_cell, by_family, by_rate = 120, 0, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        a, b = (
            {f"s{i}": base + 0.7 * rng.normal(size=(20, 3)) for i in range(4)}
            for base in rng.normal(size=(2, 20, 3))
        )
        found = compare({"a": a, "b": b}, permutations=76, intervals=False, seed=seed).panel().arrays
        assert (found["p_family"] >= found["p"]).all()
        by_cell += bool((found["p"] <= 0.05).any())
        by_family += bool((found["p_family"] <= 0.05).any())
        by_rate += bool((found["q"] <= 0.05).any())
    slack = 3 * (0.05 * 0.95 / trials) ** 0.5
    assert by_cell / trials > 0.12
    assert by_family / trials <= 0.05 + slack
    assert by_rate / trials <= 0.05 + slack


def test_what_is_shared_is_found():
    a, b = features(80, mean=0)
    found = compare({"a": a, "b": b}, permutations=790).panel().arrays
    assert (found["p"] == 1 / 791).all()
    assert (found["p_family"] == 1 / 791).all()
    assert (found["value"] > found["null_high"]).all()
    assert (found["ci_low"] > found["null_high"]).all()


def test_a_fixed_example_by_hand():
    # Two clusters, 1 1 -1 -1: moved on by one sample the split is another one, by two both change places.
    sites = handles({"x": np.array([[1.0], [1.0], [-1.0], [-1.0]])})
    whole = slice(0, 1)
    found = shifts_of_forms(sites, [(whole, whole)], [FORMS[0]], [[1.0]], np.arange(4), "float64", 1e9)
    np.testing.assert_allclose(found[0][0].ravel(), [-0.5, 1, -0.5], atol=1e-6)


def test_a_subset_says_nothing_of_features_that_few_samples_carry(rng, monkeypatch):
    """Two sparse sites rarely overlap in a subset: its null level would be too narrow."""
    from featlens.comparison import plan

    monkeypatch.setattr(plan, "NULL_ROWS", 256)
    n = 1200
    sparse = {"sparse": rng.normal(size=(n, 8)) * (rng.random((n, 8)) < 0.005)}
    dense = rng.normal(size=(n, 8))
    other = sparse | {"dense": dense + rng.normal(size=(n, 8))}
    result = compare({"a": sparse | {"dense": dense}, "b": other})
    cells = {(cell["site_a"], cell["site_b"]): cell for cell in result.cells()}
    told = cells["sparse", "sparse"]
    assert told["value"] > 0.9 and told["p"] is told["p_family"] is told["null"] is None
    assert any(remark.startswith("no p-value: too few of the samples") for remark in told["warnings"])
    assert cells["dense", "dense"]["p"] < 0.01 and not cells["dense", "dense"]["warnings"]
    monkeypatch.undo()
    whole = compare({"a": sparse, "b": sparse}).cells()[0]
    assert whole["p"] < 0.01 and not whole["warnings"]
