"""Carrying out a comparison: the same answer every time, from any batch, and progress that only grows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from featlens import compare
from featlens.comparison import engine
from featlens.comparison.forms import Kernel
from featlens.measures.kernels import median_distance, squared_distances
from tests.engine_helpers import features, precise, values

EVERY = ["cka", "cka(kernel=rbf)", "distance_correlation", "rsa", "procrustes", "mutual_knn"]


def same(one, other, atol=0.0, but=()):
    for a, b in zip(one.panels, other.panels, strict=True):
        assert (a.measure, a.a, a.b) == (b.measure, b.a, b.b)
        for quantity, array in a.arrays.items():
            if quantity not in but:
                np.testing.assert_allclose(
                    array, b.arrays[quantity], rtol=0, atol=atol, err_msg=f"{a.measure}: {quantity}"
                )


@pytest.fixture
def sides():
    return dict(zip("abc", features(30, ((3, 4, 6), (5, 2), (4,))), strict=True))


def test_the_same_seed_gives_the_same_numbers(sides):
    first, again, other = (
        compare(sides, EVERY, permutations=40, resamples=4, n=28, seed=seed) for seed in (1, 1, 2)
    )
    assert first.equals(again)
    for one, two in zip(first.panels, other.panels, strict=True):
        assert not np.array_equal(one.arrays["null"], two.arrays["null"])


def test_values_do_not_depend_on_the_seed(sides):
    first, other = (compare(sides, EVERY, permutations=40, resamples=4, seed=seed) for seed in (1, 2))
    same(first, other, but=("null", "null_high", "p", "p_family", "q", "ci_low", "ci_high"))
    one, two = (result.panel("rsa", a="a", b="b").arrays for result in (first, other))
    assert not np.array_equal(one["ci_low"], two["ci_low"])
    # All samples are left out in turn: no chance in it.
    one, two = (result.panel("cka", a="a", b="b").arrays for result in (first, other))
    np.testing.assert_array_equal(one["ci_low"], two["ci_low"])


def test_the_order_of_models_turns_pairs_round(sides):
    one = compare({"a": sides["a"], "b": sides["b"]}, permutations=40)
    two = compare({"b": sides["b"], "a": sides["a"]}, permutations=40)
    for quantity in ("value", "ci_low", "ci_high"):
        np.testing.assert_allclose(
            one.panel().arrays[quantity][0], two.panel().arrays[quantity][0].T, atol=1e-13, err_msg=quantity
        )


@pytest.mark.parametrize("way", ["tiles", "features"])
@pytest.mark.parametrize("made", ["float32", "float64"])
def test_other_sites_make_no_difference_to_a_cell(monkeypatch, sides, way, made):
    precise(monkeypatch, made)
    models = {name: sides[name] for name in "ab"}
    whole = compare(models, plan=way, permutations=58).panel().arrays
    for i, j in itertools.product(range(3), range(2)):
        chosen = {"a": f"a{i}", "b": f"b{j}"}
        alone = compare(models, sites=chosen, plan=way, permutations=58).panel().arrays
        for quantity in ("value", "ci_low", "ci_high", "null", "null_high", "p"):
            np.testing.assert_allclose(
                alone[quantity][0, 0, 0],
                whole[quantity][0, i, j],
                atol=1e-12 if made == "float64" and "null" not in quantity else 1e-6,
                err_msg=quantity,
            )


def test_other_models_and_measures_make_no_difference_to_a_panel(sides):
    whole = compare(sides, EVERY, permutations=40, resamples=4)
    for one, other in itertools.combinations("abc", 2):
        part = compare(
            {name: sides[name] for name in (one, other)}, EVERY[::-1], permutations=40, resamples=4
        )
        for name in whole.measures:
            first, second = (result.panel(name, one, other).arrays for result in (whole, part))
            for quantity, array in first.items():
                np.testing.assert_allclose(array, second[quantity], atol=1e-6, err_msg=f"{name}: {quantity}")


def test_other_noise_levels_make_no_difference(rng):
    models = {name: {"s": rng.normal(size=(3, 30, 4))} for name in "ab"}
    whole = compare(models, EVERY, sigmas=(1, 2, 3), permutations=40, resamples=4)
    for level in range(3):
        some = {name: {"s": side["s"][level]} for name, side in models.items()}
        alone = compare(some, EVERY, permutations=40, resamples=4)
        for panel, other in zip(whole.panels, alone.panels, strict=True):
            for quantity in set(panel.arrays) - {"q"}:
                np.testing.assert_allclose(
                    panel.arrays[quantity][level], other.arrays[quantity][0], atol=1e-12, err_msg=quantity
                )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"measure": EVERY},
        {"plan": "tiles"},
        {"plan": "features"},
        {"measure": "procrustes", "permutations": 0, "resamples": 0},
        {"measure": ["cka", "rsa"], "intervals": False},
    ],
    ids=str,
)
def test_progress_only_grows_and_ends_at_the_total(rng, options):
    models = {
        name: {f"s{i}": rng.normal(size=(2, 24, 4)) for i in range(count)}
        for name, count in (("a", 3), ("b", 1), ("c", 2))
    }
    told = []
    given = {"permutations": 20, "resamples": 3} | options
    compare(models, sigmas=(1, 2), progress=lambda *step: told.append(step), **given)
    done = [step for step, _ in told]
    assert {total for _, total in told} == {1000}
    assert done == sorted(done)
    assert done[-1] == 1000
    assert all(0 <= step <= 1000 for step in done)
    assert len(set(done)) >= 2


def test_measures_of_tiles_share_one_pass(monkeypatch, sides):
    passes = []
    original = engine.accumulate

    def counted(rows, pairs, kernels, *rest):
        passes.append([kernel.kind for kernel in kernels])
        return original(rows, pairs, kernels, *rest)

    monkeypatch.setattr(engine, "accumulate", counted)
    names = ["distance_correlation", "cka(kernel=rbf)", "distance_correlation(estimator=biased)", "cka"]
    compare(sides, names, plan="tiles", permutations=0)
    assert passes == [["distance", "rbf", "linear"]]


def test_each_site_is_prepared_once(monkeypatch, sides):
    from featlens.measures.declare import resolve

    bound = resolve("procrustes")
    method, seen = type(bound.method), []
    original = method.prepare
    monkeypatch.setattr(method, "prepare", lambda self, x: seen.append(x.shape) or original(self, x))
    compare(sides, "procrustes", permutations=30, intervals=False)
    assert len(seen) == 6


@pytest.mark.parametrize("limit", [1000, 12])
def test_bandwidths_are_medians_in_units_of_the_features(sides, limit):
    from featlens.comparison.compare import _resolved

    a = {site: x * factor for (site, x), factor in zip(sides["a"].items(), (1.0, 1e-20, 1e20), strict=True)}
    a["flat"] = np.ones((30, 2))
    with _resolved({"a": a, "b": sides["b"]}, "cka", None, None) as (_, request):
        level = engine._level(request, 0.0, 0.0)
        found = engine._bandwidths(request, level, Kernel("rbf", 0.5), limit)
    for width, x in zip(found, [*a.values(), *sides["b"].values()], strict=True):
        apart = np.linalg.norm(x[:, None] - x[None], axis=2)
        apart = apart[np.triu_indices(30, 1)]
        median = np.median(apart[apart > 0]) if apart.any() else 0.0
        assert width == pytest.approx(0.5 * median, rel=1e-9 if limit == 1000 else 0.4)
    # The same from squared distances that come up to a power of two.
    squared = squared_distances(1e5 * sides["a"]["a0"])
    unit = engine._unit(1e5 * sides["a"]["a0"], squared)
    whole = np.linalg.norm(1e5 * (sides["a"]["a0"][:, None] - sides["a"]["a0"][None]), axis=2)
    assert median_distance(squared) * unit == pytest.approx(
        np.median(whole[np.triu_indices(30, 1)]), rel=1e-12
    )


def test_a_bandwidth_from_some_samples_changes_little(monkeypatch):
    a, b = features(400, ((6,), (8,)))
    exact = values(compare({"a": a, "b": b}, "cka(kernel=rbf)", permutations=0))
    monkeypatch.setattr(engine, "MEDIAN_ROWS", 100)
    some = values(compare({"a": a, "b": b}, "cka(kernel=rbf)", permutations=0))
    np.testing.assert_allclose(some, exact, rtol=0.02)
    assert not np.array_equal(some, exact)


@pytest.mark.parametrize("way", ["tiles", "features"])
def test_what_is_computed_again_in_float64_is_said(monkeypatch, sides, way):
    precise(monkeypatch, "float32")
    far = {site: np.vstack([x[:-1], 1e4 * x[-1:]]) for site, x in sides["a"].items()}
    models = {"a": sides["a"], "b": sides["b"]}
    assert compare(models, plan=way, permutations=0).panel().how["plan"].endswith("in float32")
    assert compare(models | {"a": far}, plan=way, permutations=0).panel().how["plan"].endswith("in float64")
    both = {name: {site: np.stack([x, x]) for site, x in side.items()} for name, side in models.items()}
    both["a"]["a0"][1] = far["a0"]
    told = compare(both, plan=way, sigmas=(1, 2), permutations=0).panel().how["plan"]
    assert told.endswith("in float32 and float64")
