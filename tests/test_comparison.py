"""Comparing two feature files or sets of arrays: labels, null levels, refusals, saving."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from featlens import Comparison, FeatureStore, compare
from featlens.errors import FeatlensError, SiteError, StoreError, UsageError
from featlens.measures import cka

WIDTHS = {"enc.conv": 8, "enc.norm": 3, "dec.conv": 5}
SIGMAS = (0.1, 2.5)


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


def test_every_cell_is_cka_of_the_two_sites_at_that_sigma(files):
    paths, written = files
    result = compare(paths, permutations=0)
    assert result.data["value"].dims == ("sigma", "site_a", "site_b")
    assert list(result.data["site_a"].values) == list(WIDTHS)
    for sigma in SIGMAS:
        for a in WIDTHS:
            for b in WIDTHS:
                value = float(result.data["value"].sel(sigma=sigma, site_a=a, site_b=b))
                expected = cka(written["teacher"][a, sigma], written["student"][b, sigma])
                assert value == pytest.approx(expected, abs=1e-12)


def test_a_file_compared_with_itself_is_one_on_the_diagonal_and_far_above_its_null(files):
    path = files[0]["teacher"]
    result = compare({"a": path, "b": path}, permutations=50)
    for values in result.same_site().values():
        np.testing.assert_allclose(values, 1, atol=1e-12)
    diagonal = [cell for cell in result.cells() if cell["site_a"] == cell["site_b"]]
    assert len(diagonal) == len(WIDTHS) * len(SIGMAS)
    for cell in diagonal:
        assert cell["p"] == cell["p_family"] == pytest.approx(1 / 51)
        assert abs(cell["null"]) < cell["null_high"] < 0.3


def test_unrelated_features_are_not_significant(arrays, rng):
    other = {name: rng.normal(size=values.shape) for name, values in arrays.items()}
    data = compare({"a": arrays, "b": other}, permutations=99).data
    assert float(data["p_family"].min()) > 0.05
    assert (data["p_family"] >= data["p"]).all()
    assert (data["p"].values >= 0.01).all()


def test_null_columns_summarise_the_permutations():
    values = np.array([[[0.5, np.nan]]])
    nulls = np.array([[0.1, np.nan], [0.2, np.nan], [0.6, np.nan], [0.5, np.nan]]).reshape(1, 4, 1, 2)
    provenance = {"a": {"name": "a"}, "b": {"name": "b"}}
    data = Comparison.from_arrays("cka", values, nulls, [0.5], (["x"], ["y", "z"]), 9, provenance).data
    assert float(data["null"][0, 0, 0]) == pytest.approx(0.35)
    assert float(data["null_high"][0, 0, 0]) == pytest.approx(np.quantile([0.1, 0.2, 0.5, 0.6], 0.95))
    assert float(data["p"][0, 0, 0]) == pytest.approx(3 / 5)
    for name in ("null", "null_high", "p", "p_family"):
        assert np.isnan(data[name].values[0, 0, 1])


def test_family_wise_p_values_count_the_largest_null_of_the_grid():
    values = np.array([[[0.5, 0.3]]])
    nulls = np.array([[0.1, 0.6], [0.1, 0.4], [0.1, 0.2]]).reshape(1, 3, 1, 2)
    data = Comparison.from_arrays("cka", values, nulls, [0.5], (["x"], ["y", "z"]), 9, {}).data
    assert data["p"].values.ravel().tolist() == [1 / 4, 3 / 4]
    assert data["p_family"].values.ravel().tolist() == [2 / 4, 3 / 4]


def test_sites_and_sigmas_are_chosen(files):
    paths, _ = files
    result = compare(paths, sites=["dec.*", "enc.norm"], sigmas=[2.5], permutations=0)
    assert result.data.sizes == {"sigma": 1, "site_a": 2, "site_b": 2}
    assert list(result.data["site_a"].values) == ["enc.norm", "dec.conv"]
    whole = compare(paths, permutations=0)
    assert result.same_site()["dec.conv"][0] == whole.same_site()["dec.conv"][1]


def test_stores_and_paths_and_arrays_say_the_same(files):
    paths, written = files
    expected = compare(paths, permutations=5, seed=2).data
    with FeatureStore(paths["teacher"]) as a:
        mixed = {"teacher": a, "student": str(paths["student"])}
        assert compare(mixed, permutations=5, seed=2).data.equals(expected)
        assert a.read("enc.conv", 0.1).shape == (60, 8)
    plain = {
        name: {site: np.stack([values[site, sigma] for sigma in SIGMAS]) for site in WIDTHS}
        for name, values in written.items()
    }
    assert compare(plain, sigmas=SIGMAS, permutations=5, seed=2).data.equals(expected)


def test_only_common_noise_levels_are_compared(tmp_path, make_store):
    for name, sigmas in (("a", (0.1, 0.5, 2.5)), ("b", (2.5, 0.5, 9.0))):
        make_store(tmp_path / f"{name}.h5", sigmas=sigmas)
    paths = {name: tmp_path / f"{name}.h5" for name in "ab"}
    result = compare(paths, permutations=0)
    assert result.data["sigma"].values.tolist() == [0.5, 2.5]
    with pytest.raises(
        UsageError, match=r"A has the noise levels 0\.1, 0\.5, 2\.5, B has 2\.5, 0\.5, 9; not all"
    ):
        compare(paths, sigmas=[0.5, 0.1])
    make_store(tmp_path / "c.h5", sigmas=(7.0,))
    with pytest.raises(UsageError, match="B has 7; none is common"):
        compare({"a": paths["a"], "c": tmp_path / "c.h5"})


def test_sites_that_only_one_side_has_are_still_compared(tmp_path, make_store):
    make_store(tmp_path / "a.h5", {"x": 3, "shared": 4})
    make_store(tmp_path / "b.h5", {"shared": 4, "y": 2, "z": 2})
    result = compare({"a": tmp_path / "a.h5", "b": tmp_path / "b.h5"}, permutations=0)
    assert result.data["value"].shape == (1, 2, 3)
    assert list(result.same_site()) == ["shared"]


def test_other_samples_are_refused_unless_asked_for(tmp_path, make_store, files):
    make_store(tmp_path / "other.h5", WIDTHS, SIGMAS, sample_digest="d2")
    pair = {"teacher": files[0]["teacher"], "other": tmp_path / "other.h5"}
    with pytest.raises(
        StoreError, match=r"hold other samples or other noise .*digest d1; .*digest d2.*rows do not"
    ) as e:
        compare(pair)
    assert "\n" not in str(e.value)
    assert compare(pair, permutations=0, allow_other_samples=True).n == 60


def test_the_same_digest_with_other_ids_is_refused(tmp_path, make_store, files):
    make_store(tmp_path / "other.h5", WIDTHS, SIGMAS, n=50)
    with pytest.raises(StoreError, match=r"n 60, .* n 50, .*rows do not correspond"):
        compare({"a": files[0]["teacher"], "b": tmp_path / "other.h5"})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"measure": "cak"}, UsageError, "unknown measure 'cak': did you mean 'cka'"),
        ({"sites": "enc.cnov"}, SiteError, r"no site 'enc\.cnov' in 'a': did you mean 'enc\.conv'"),
        ({"permutations": -1}, UsageError, "permutations must be 0 or more, got -1"),
    ],
)
def test_wrong_requests_name_the_nearest_choice(arrays, options, error, message):
    with pytest.raises(error, match=message):
        compare({"a": arrays, "b": arrays}, **options)


def test_wrong_sources_are_refused(arrays):
    short = {site: values[:9] for site, values in arrays.items()}
    broken = {"enc.conv": np.where(np.eye(60, 8) > 0, np.nan, 1.0)}
    for pair, message in (
        ({"a": arrays}, r"expected two models .*, got 1: \['a'\]"),
        ({"a": arrays, "b": 3}, "'b' is a int; expected a feature file or"),
        ({"a": arrays, "b": {}}, "'b' has no sites"),
        ({"a": arrays, "b": {"x": np.ones(4)}}, r"site 'x' must be \(n, d\), got \(4,\)"),
        (
            {"a": arrays, "b": {"x": np.ones((2, 9, 3))}},
            "site 'x' has 2 noise levels, expected 1; pass sigmas=",
        ),
        ({"a": arrays, "b": short}, r"different numbers of samples: \[9, 60\]"),
        ({"a": arrays, "b": broken}, r"row 0 of site 'enc\.conv' of B holds NaN or infinity \(8 such rows\)"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(pair)


def test_a_closed_store_is_refused(files, arrays):
    store = FeatureStore(files[0]["teacher"])
    store.close()
    with pytest.raises(StoreError, match=r"teacher\.h5 was closed; open it again"):
        compare({"a": store, "b": files[0]["student"]})


def test_the_frame_has_one_row_a_cell(files):
    frame = compare(files[0], permutations=3).to_frame()
    columns = ["sigma", "site_a", "site_b", "value", "null", "null_high", "p", "p_family", "n", "warnings"]
    assert list(frame.columns) == columns
    assert len(frame) == 2 * 3 * 3
    assert set(frame["n"]) == {60}


def test_cells_are_plain_json(files, arrays):
    result = compare({"a": arrays, "b": {"flat": np.ones((60, 2)), "x": arrays["enc.conv"]}}, permutations=0)
    cells = result.cells()
    assert json.loads(json.dumps(cells)) == cells
    assert cells[0]["value"] is None
    assert cells[1]["value"] == pytest.approx(1)
    told = json.loads(compare(files[0], permutations=2).to_json())
    assert len(told["cells"]) == 18
    assert told["cells"][0]["measure"] == "cka"
    assert told["provenance"]["a"]["name"] == "teacher"


def test_doubts_are_told_beside_the_numbers(arrays):
    few = {site: values[:20] for site, values in arrays.items()}
    result = compare({"a": few, "b": {"flat": np.ones((20, 2))}}, permutations=3)
    assert result.warnings[0].startswith("only 20 samples")
    assert result.warnings[1].startswith("3 cells are undefined (NaN)")
    assert set(result.to_frame()["warnings"]) == {"; ".join(result.warnings)}
    assert compare({"a": arrays, "b": arrays}, permutations=0).warnings == []


def test_the_same_seed_gives_the_same_null_and_the_value_does_not_depend_on_it(files):
    first, again, other = (compare(files[0], permutations=9, seed=seed).data for seed in (1, 1, 2))
    assert first.identical(again)
    assert first["value"].equals(other["value"])
    assert not first["null"].equals(other["null"])


def test_saving_and_loading_is_a_round_trip(files, tmp_path):
    result = compare(files[0], permutations=9)
    result.save(tmp_path / "c.nc")
    loaded = Comparison.load(tmp_path / "c.nc")
    assert loaded.data.equals(result.data)
    assert (loaded.n, loaded.measure, loaded.names) == (60, "cka", ("teacher", "student"))
    assert loaded.provenance == result.provenance
    assert loaded.warnings == result.warnings
    result.save(tmp_path / "c.nc")
    result.save(tmp_path / "c.csv")
    import pandas as pd

    frame = pd.read_csv(tmp_path / "c.csv")
    np.testing.assert_allclose(frame["value"], result.to_frame()["value"])


def test_bad_places_to_save_and_load_are_one_line(files, tmp_path):
    result = compare(files[0], permutations=0)
    with pytest.raises(UsageError, match=r"c\.json: expected a name that ends in \.nc or \.csv"):
        result.save(tmp_path / "c.json")
    with pytest.raises(FeatlensError, match="there is no such file or folder"):
        result.save(tmp_path / "nowhere" / "c.nc")
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = [1.0]
    for path in (files[0]["teacher"], tmp_path / "plain.h5"):
        with pytest.raises(StoreError, match="expected a saved comparison, found another HDF5 file"):
            Comparison.load(path)
    with pytest.raises(FeatlensError, match="there is no such file or folder"):
        Comparison.load(tmp_path / "missing.nc")


def test_the_result_cannot_be_changed_through_its_copies(files):
    result = compare(files[0], permutations=0)
    before = result.data["value"].values.copy()
    result.to_xarray()["value"][:] = 7
    assert np.array_equal(result.data["value"].values, before)
    with pytest.raises(AttributeError):
        result.data = None


def test_figures_show_every_sigma_and_site(files):
    result = compare(files[0], permutations=3)
    heatmap = result.figure("heatmap")
    assert [trace.visible for trace in heatmap.data] == [False, True]
    np.testing.assert_allclose(np.asarray(heatmap.data[0].z), result.data["value"].values[0])
    assert list(heatmap.data[0].y) == list(WIDTHS)
    assert [step.label for step in heatmap.layout.sliders[0].steps] == ["0.1", "2.5"]
    curves = result.figure("sigma")
    assert [trace.name for trace in curves.data] == list(WIDTHS)
    np.testing.assert_allclose(curves.data[2].y, result.same_site()["dec.conv"])
    with pytest.raises(UsageError, match="unknown figure 'heatmp': did you mean 'heatmap'"):
        result.figure("heatmp")
    assert "plotly" in result._repr_html_()
    assert repr(result) == "Comparison(cka: teacher x student, 2 sigmas, 3 x 3 sites, n 60)"


def test_progress_counts_noise_levels(files):
    told = []
    compare(files[0], permutations=0, progress=lambda *counts: told.append(counts))
    assert told == [(1, 2), (2, 2)]
