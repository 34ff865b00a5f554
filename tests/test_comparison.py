"""Comparing feature files or arrays: every measure as its function says, pairs, levels, subsets, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from featlens import FeatureStore, compare
from featlens.errors import StoreError
from featlens.measures import cka
from featlens.measures.declare import MEASURES, resolve
from tests.engine_helpers import features, precise, unrelated, values

WIDTHS = {"enc.conv": 8, "enc.norm": 3, "dec.conv": 5}
SIGMAS = (0.1, 2.5)
OPTIONS = [
    "cka(estimator=biased)",
    "cka(kernel=rbf)",
    "cka(kernel=rbf,estimator=biased,bandwidth=0.5)",
    "cka(kernel=rbf,bandwidth=30)",
    "distance_correlation(estimator=biased)",
    "rsa(distance=euclidean,comparison=pearson)",
    "rsa(distance=cosine,comparison=kendall)",
    "mutual_knn(k=3)",
    "mean_cca(ridge=0.1)",
    "linear_predictivity(folds=3,seed=2)",
]
FORMS = {"cka", "distance_correlation"}


@pytest.fixture
def files(tmp_path, make_store):
    """Two files of the same samples, and their features."""
    paths = {name: tmp_path / f"{name}.h5" for name in ("teacher", "student")}
    written = {
        name: make_store(path, WIDTHS, SIGMAS, seed=seed) for seed, (name, path) in enumerate(paths.items())
    }
    return paths, written


@pytest.fixture
def arrays(rng):
    return {name: rng.normal(size=(60, width)) for name, width in WIDTHS.items()}


def expected(name, a, b):
    bound = resolve(name)
    return np.array([[bound.measure.function(x, y, **bound.options) for y in b.values()] for x in a.values()])


@pytest.mark.parametrize("name", [*MEASURES, *OPTIONS])
@pytest.mark.parametrize("way", ["tiles", "features", "auto"])
def test_every_cell_is_what_the_function_says(name, way):
    form = name.partition("(")[0] in FORMS or "euclidean" in name
    if way == "features" and not (form and resolve(name).options.get("kernel") == "linear"):
        pytest.skip("cannot be streamed")
    a, b = features(40, ((5, 17), (3, 30)))
    result = compare({"a": a, "b": b}, name, plan=way, permutations=0, intervals=False)
    panel = result.panel()
    np.testing.assert_allclose(
        panel.arrays["value"][0], expected(name, a, b), rtol=0, atol=1e-12 if form else 1e-9
    )
    bound = resolve(name)
    assert (panel.measure, panel.direction) == (bound.name, bound.measure.direction)
    assert panel.bounds == (bound.measure.low, bound.measure.high)


def test_measures_in_one_go_are_the_measures_one_by_one():
    a, b = features(50, ((4, 9), (7,)))
    names = ["cka", "cka(kernel=rbf)", "distance_correlation", "cka(estimator=biased)", "rsa", "procrustes"]
    every = compare({"a": a, "b": b}, names, permutations=60, resamples=5, plan="auto")
    assert every.measures == tuple(resolve(name).name for name in names)
    for name in names:
        alone = compare({"a": a, "b": b}, name, permutations=60, resamples=5)
        for quantity, array in alone.panel().arrays.items():
            np.testing.assert_allclose(
                every.panel(name).arrays[quantity], array, atol=1e-12, err_msg=quantity
            )


def test_a_measure_asked_for_twice_is_there_once():
    a, b = features(20, ((4,), (7,)))
    result = compare({"a": a, "b": b}, ["cka", "cka(estimator='debiased')"], permutations=0)
    assert result.measures == ("cka",)


def test_files_give_every_cell_at_every_noise_level(files):
    paths, written = files
    result = compare(paths, permutations=0)
    assert result.levels == tuple((sigma, sigma) for sigma in SIGMAS)
    grid = result.grid()["value"]
    for sigma in SIGMAS:
        for a in WIDTHS:
            for b in WIDTHS:
                value = float(grid.sel(sigma=sigma, site_a=a, site_b=b))
                truth = cka(written["teacher"][a, sigma], written["student"][b, sigma])
                assert value == pytest.approx(truth, abs=1e-12)


def test_stores_and_paths_and_arrays_say_the_same(files):
    paths, written = files
    told = compare(paths, permutations=5, seed=2)
    plain = {
        name: {site: np.stack([features[site, sigma] for sigma in SIGMAS]) for site in WIDTHS}
        for name, features in written.items()
    }
    with FeatureStore(paths["teacher"]) as a:
        mixed = compare({"teacher": a, "student": str(paths["student"])}, permutations=5, seed=2)
        assert mixed.equals(told)
        assert a.read("enc.conv", 0.1).shape == (60, 8)
    arrays = compare(plain, sigmas=SIGMAS, permutations=5, seed=2)
    for name, array in told.panel().arrays.items():
        np.testing.assert_array_equal(arrays.panel().arrays[name], array, err_msg=name)


def test_a_file_compared_with_itself_is_one_on_the_diagonal_and_far_above_its_null(files):
    path = files[0]["teacher"]
    result = compare({"a": path, "b": path}, permutations=59)
    for same in result.same_site().values():
        np.testing.assert_allclose(same, 1, atol=1e-12)
    diagonal = [cell for cell in result.cells() if cell["site_a"] == cell["site_b"]]
    assert len(diagonal) == len(WIDTHS) * len(SIGMAS)
    for cell in diagonal:
        assert cell["p"] == cell["p_family"] == pytest.approx(1 / 60)
        assert abs(cell["null"]) < cell["null_high"] < 0.3
        assert cell["ci_low"] == pytest.approx(1, abs=1e-6)
        assert cell["ci_high"] == pytest.approx(1, abs=1e-12)


def test_unrelated_features_are_not_significant():
    result = compare(unrelated(60, ((8, 3, 5), (8, 3, 5)), seed=0), permutations=590)
    found = result.panel().arrays
    assert found["p_family"].min() > 0.05
    assert (found["p_family"] >= found["p"]).all()
    assert (found["p"] >= 1 / 591).all()
    assert (found["ci_low"] < 0).sum() >= 7
    assert (found["ci_low"] < found["value"]).all()
    assert (found["value"] < found["ci_high"]).all()


def test_all_pairs_of_many_models_or_those_with_a_reference():
    sides = dict(zip("abc", features(30, ((4, 5), (6,), (3, 7, 2))), strict=True))
    every = compare(sides, permutations=0)
    assert every.pairs == (("a", "b"), ("a", "c"), ("b", "c"))
    assert compare(sides, permutations=0, reference="b").pairs == (("b", "a"), ("b", "c"))
    for one, other in every.pairs:
        found = values(every, a=one, b=other)[0]
        np.testing.assert_allclose(found, expected("cka", sides[one], sides[other]), atol=1e-12)


@pytest.mark.parametrize("way", ["tiles", "features"])
@pytest.mark.parametrize("name", ["cka", "distance_correlation", "rsa"])
def test_every_noise_level_with_every_other(rng, name, way):
    if way == "features" and name != "cka":
        pytest.skip("cannot be streamed")
    sigmas = (2.5, 0.1, 0.5)
    a, b = ({f"s{d}": rng.normal(size=(3, 30, d)) for d in sizes} for sizes in ((4, 6), (5,)))
    result = compare(
        {"a": a, "b": b}, name, None, sigmas, cross_sigmas=True, permutations=0, plan=way, intervals=False
    )
    assert result.levels == tuple((x, y) for x in sigmas for y in sigmas)
    found = values(result)
    for number, (x, y) in enumerate(result.levels):
        i, j = sigmas.index(x), sigmas.index(y)
        some = ({site: array[at] for site, array in side.items()} for side, at in ((a, i), (b, j)))
        np.testing.assert_allclose(found[number], expected(name, *some), atol=1e-9)


def test_crossed_noise_levels_of_three_models(rng):
    models = {name: {"s": rng.normal(size=(2, 30, d))} for name, d in (("a", 4), ("b", 5), ("c", 3))}
    result = compare(models, sigmas=(1.0, 2.0), cross_sigmas=True, permutations=0)
    for one, other in result.pairs:
        for number, (x, y) in enumerate(result.levels):
            truth = cka(models[one]["s"][int(x) - 1], models[other]["s"][int(y) - 1])
            assert values(result, a=one, b=other)[number, 0, 0] == pytest.approx(truth, abs=1e-12)


def test_two_files_of_different_noise_levels_can_be_crossed(tmp_path, make_store):
    wrote = {
        name: make_store(tmp_path / f"{name}.h5", {"s": 4}, sigmas, seed=seed)
        for seed, (name, sigmas) in enumerate((("a", (0.1, 0.5)), ("b", (3.0, 2.0, 7.0))))
    }
    result = compare({name: tmp_path / f"{name}.h5" for name in "ab"}, cross_sigmas=True, permutations=0)
    assert result.levels == tuple((x, y) for x in (0.1, 0.5) for y in (3.0, 2.0, 7.0))
    for (x, y), value in zip(result.levels, values(result).ravel(), strict=True):
        assert value == pytest.approx(cka(wrote["a"]["s", x], wrote["b"]["s", y]), abs=1e-12)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_a_random_subset_is_the_same_rows_of_every_site(files, monkeypatch, kind):
    from featlens.seeds import derive

    precise(monkeypatch, kind)
    paths, written = files
    result = compare(paths, n=20, seed=4, permutations=0)
    rows = np.sort(np.random.default_rng(derive(4, "subset")).permutation(60)[:20])
    assert result.n == 20
    assert any("a random subset of 20 of 60 samples is compared (seed 4)" in told for told in result.warnings)
    found = values(result)
    for level, sigma in enumerate(SIGMAS):
        a, b = (
            {site: written[name][site, sigma][rows] for site in WIDTHS} for name in ("teacher", "student")
        )
        np.testing.assert_allclose(
            found[level], expected("cka", a, b), atol=1e-12 if kind == "float64" else 1e-6
        )
    assert not np.allclose(found, values(compare(paths, n=20, seed=5, permutations=0)))
    whole = compare(paths, n=500, permutations=0)
    assert whole.n == 60
    assert not any("subset" in told for told in whole.warnings)


def test_other_measures_look_at_the_same_subset(files):
    paths, written = files
    from featlens.seeds import derive

    result = compare(paths, "procrustes", n=30, seed=4, permutations=0, intervals=False)
    rows = np.sort(np.random.default_rng(derive(4, "subset")).permutation(60)[:30])
    a, b = ({site: written[name][site, 0.1][rows] for site in WIDTHS} for name in ("teacher", "student"))
    np.testing.assert_allclose(values(result)[0], expected("procrustes", a, b), atol=1e-12)


def test_sites_and_sigmas_are_chosen(files):
    paths, _ = files
    result = compare(paths, sites=["dec.*", "enc.norm"], sigmas=[2.5], permutations=0)
    panel = result.panel()
    assert (panel.sites_a, panel.sites_b, result.levels) == (("enc.norm", "dec.conv"),) * 2 + (((2.5, 2.5),),)
    whole = compare(paths, permutations=0)
    assert result.same_site()["dec.conv"][0] == pytest.approx(whole.same_site()["dec.conv"][1], abs=1e-14)
    own = compare(paths, sites={"teacher": "enc.*", "student": None}, permutations=0).panel()
    assert (own.sites_a, own.sites_b) == (("enc.conv", "enc.norm"), tuple(WIDTHS))


def test_sites_that_only_one_side_has_are_still_compared(tmp_path, make_store):
    make_store(tmp_path / "a.h5", {"x": 3, "shared": 4})
    make_store(tmp_path / "b.h5", {"shared": 4, "y": 2, "z": 2})
    result = compare({"a": tmp_path / "a.h5", "b": tmp_path / "b.h5"}, permutations=0)
    assert values(result).shape == (1, 2, 3)
    assert list(result.same_site()) == ["shared"]


def test_doubts_are_told_beside_the_numbers(arrays):
    few = {site: array[:20] for site, array in arrays.items()}
    result = compare({"a": few, "b": {"flat": np.ones((20, 2)), "x": few["enc.conv"]}}, permutations=3)
    assert result.warnings[0].startswith("only 20 samples: values scatter widely; use at least 50")
    cells = result.cells()
    assert all(any(told.startswith("only 20") for told in cell["warnings"]) for cell in cells)
    undefined = [any("undefined" in told for told in cell["warnings"]) for cell in cells]
    assert undefined == [cell["site_b"] == "flat" for cell in cells]
    assert [cell["value"] is None for cell in cells] == undefined
    for cell in cells[::2]:
        assert {cell[name] for name in ("ci_low", "ci_high", "null", "p", "p_family", "q")} == {None}
    assert compare({"a": arrays, "b": arrays}, permutations=0).warnings == ()


def test_what_a_measure_says_of_n_and_widths_is_told_in_the_cell(rng):
    models = {"a": {"wide": rng.normal(size=(60, 80)), "slim": rng.normal(size=(60, 3))}}
    models["b"] = {"slim": rng.normal(size=(60, 4))}
    cells = compare(models, "mean_cca", permutations=0, intervals=False).cells()
    assert [len(cell["warnings"]) > 0 for cell in cells] == [True, False]


def test_other_samples_are_refused_unless_asked_for(tmp_path, make_store, files):
    make_store(tmp_path / "other.h5", WIDTHS, SIGMAS, sample_digest="d2")
    pair = {"teacher": files[0]["teacher"], "other": tmp_path / "other.h5"}
    with pytest.raises(
        StoreError, match=r"hold other samples or other noise .*digest d1; .*digest d2.*rows do not"
    ) as e:
        compare(pair)
    assert "\n" not in str(e.value)
    assert compare(pair, permutations=0, allow_other_samples=True).n == 60


def test_a_third_file_of_other_samples_is_refused(tmp_path, make_store, files):
    make_store(tmp_path / "other.h5", WIDTHS, SIGMAS, sample_digest="d2")
    with pytest.raises(StoreError, match="hold other samples or other noise"):
        compare({**files[0], "other": tmp_path / "other.h5"}, reference="teacher")


def test_the_provenance_says_what_was_compared(files):
    result = compare(files[0], permutations=3, seed=7, n=30, level=0.9)
    told = result.provenance
    assert list(told["models"]) == ["teacher", "student"]
    assert told["models"]["teacher"]["file"] == str(files[0]["teacher"])
    assert told["samples"]["n"] == 30
    assert told["samples"]["digest"] == "d1"
    whole = compare(files[0], permutations=0).provenance["samples"]
    assert whole["ids"] != told["samples"]["ids"]
    assert (told["seed"], told["permutations"], told["level"], told["device"]) == (7, 3, 0.9, "cpu")
    assert compare(files[0], permutations=0, intervals=False).provenance["level"] is None
    how = result.panel().how
    assert set(how) == {"plan", "interval", "null"}
    assert "jackknife" in how["interval"]
    assert "at least 3 cyclic shifts" in how["null"]
