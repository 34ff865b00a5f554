"""Saved comparisons: bit for bit, as netCDF for others, and refused in one line if they are not."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from featlens import Comparison, compare
from featlens.comparison import saved
from featlens.comparison.panel import QUANTITIES
from featlens.errors import FeatlensError, StoreError, UsageError
from tests.comparison_helpers import HOSTILE, crossed, distances, make_comparison, make_panel, three_models


@pytest.fixture
def path(tmp_path):
    return tmp_path / "c.nc"


def same_bits(one, other):
    for a, b in zip(one.panels, other.panels, strict=True):
        for name in QUANTITIES:
            assert a.arrays[name].tobytes() == b.arrays[name].tobytes(), name
        assert a.flags.tobytes() == b.flags.tobytes() and a.flags.dtype == b.flags.dtype


@pytest.mark.parametrize("make", [make_comparison, three_models, crossed, distances])
def test_everything_comes_back_bit_for_bit(make, path):
    result = make()
    result.save(path)
    loaded = Comparison.load(path)
    assert loaded.equals(result) and result.equals(loaded)
    same_bits(result, loaded)
    assert (loaded.levels, loaded.n, loaded.warnings) == (result.levels, result.n, result.warnings)
    assert loaded.provenance == result.provenance
    assert loaded.data.identical(result.data)
    for a, b in zip(result.panels, loaded.panels, strict=True):
        assert (a.bounds, a.remarks, dict(a.how), a.title) == (b.bounds, b.remarks, dict(b.how), b.title)


def test_what_compare_returns_comes_back(path, rng):
    arrays = {name: {"s": rng.normal(size=(60, 3))} for name in ("a", "b", "c")}
    result = compare(arrays, ["cka", "cka(estimator=biased)"], permutations=5)
    result.save(path)
    assert Comparison.load(path).equals(result)


@pytest.mark.parametrize(
    "name", [HOSTILE, "", "a\0b", "\ud800", "x" * 70_000, "ünï.ço[0]#1", '"\\', "nan", "%{x}", "a\nb"]
)
def test_any_name_comes_back(path, name):
    panel = make_panel(name or "cka", name, "b", (name, "y"), (name,), remarks=(name,), title=name)
    result = make_comparison(panel, warnings=(name,), note={name: name})
    result.save(path)
    assert Comparison.load(path).equals(result)
    with xr.open_dataset(path, group="panel0", engine="h5netcdf") as data:
        assert data["value"].shape == (2, 2, 1)


def test_levels_that_differ_in_the_last_bit_come_back(path):
    levels = ((0.1, 0.1), (float(np.nextafter(0.1, 1)), 0.1))
    make_comparison(levels=levels).save(path)
    assert Comparison.load(path).levels == levels


def test_a_large_provenance_comes_back(path):
    result = make_comparison(log=["line"] * 100_000)
    result.save(path)
    assert Comparison.load(path).provenance["log"] == ["line"] * 100_000


def test_what_json_does_not_know_in_a_provenance_becomes_none(path):
    make_comparison(odd=[float("nan"), float("inf"), np.float64(2.0)]).save(path)
    assert Comparison.load(path).provenance["odd"] == [None, None, 2.0]


def test_others_read_a_group_a_panel(path):
    result = three_models()
    result.save(path)
    for number, panel in enumerate(result.panels):
        with xr.open_dataset(path, group=f"panel{number}", engine="h5netcdf") as data:
            assert data["value"].dims == ("sigma", "site_a", "site_b")
            assert data["site_a"].values.tolist() == list(panel.sites_a)
            assert data["sigma"].values.tolist() == [0.1, 2.5] and "sigma_b" in data.coords
            np.testing.assert_array_equal(data["q"].values, panel.arrays["q"])
            assert (data.attrs["measure"], data.attrs["a"]) == (panel.measure, panel.a)


def test_a_table_has_the_warnings_about_the_whole_in_every_row(path):
    result = make_comparison()
    result.save(path.with_suffix(".csv"))
    table = pd.read_csv(path.with_suffix(".csv"))
    assert len(table) == 18
    np.testing.assert_array_equal(table["value"], result.to_frame()["value"])
    assert table["warnings"].str.endswith("only 60 samples").all()
    assert table["warnings"][0].split("; ")[:-1] == result.cells()[0]["warnings"]


def test_an_earlier_file_is_replaced_whole_or_stays(path, monkeypatch):
    make_comparison().save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "write_bytes", fail)
        with pytest.raises(FeatlensError, match="the disk is full"):
            three_models().save(path)
    assert path.read_bytes() == before
    three_models().save(path)
    assert Comparison.load(path).equals(three_models())
    assert [entry.name for entry in path.parent.iterdir()] == ["c.nc"]


# --- refused ------------------------------------------------------------------------------------------------


def refused(path, match):
    with pytest.raises(FeatlensError, match=match) as error:
        Comparison.load(path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_other_names_and_places_are_refused(path):
    with pytest.raises(UsageError, match=r"c\.json: expected a name that ends in \.nc or \.csv"):
        make_comparison().save(path.with_suffix(".json"))
    with pytest.raises(FeatlensError, match="there is no such file or folder"):
        make_comparison().save(path.parent / "nowhere" / "c.nc")
    refused(path, "there is no such file or folder")
    refused(path.parent, "this is a folder")


def test_other_files_are_refused(path, tmp_path, make_store):
    make_store(tmp_path / "features.h5")
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = [1.0]
    for other in ("features.h5", "plain.h5"):
        refused(tmp_path / other, "expected a saved comparison, found another HDF5 file; make one with")
    for content in (b"", b"measure,a,b\n", b"\x89HDF"):
        path.write_bytes(content)
        refused(path, r"expected a saved comparison \(netCDF-4\), found something else; make one with")


def test_the_layout_of_earlier_versions_is_refused_with_what_to_do(path):
    data = xr.Dataset(
        {"value": (("sigma", "site_a", "site_b"), np.ones((1, 1, 1)))},
        attrs={"format": "featlens.comparison", "version": 1, "measure": "cka", "n": 9, "provenance": "{}"},
    )
    data.to_netcdf(path, engine="h5netcdf")
    refused(path, "expected format version 2, found 1, written by an earlier featlens .*; compare again")


def test_a_newer_version_is_refused(path):
    make_comparison().save(path)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 3
    refused(path, "expected format version 2, found 3, written by a newer featlens; upgrade featlens")


def test_a_truncated_file_is_refused(path):
    make_comparison().save(path)
    whole = path.read_bytes()
    for share in (0.05, 0.3, 0.7, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        refused(path, "expected a whole saved comparison, found a damaged one .*; copy it or compare again")


def test_damage_is_refused_or_makes_no_difference(path):
    result = make_comparison()
    result.save(path)
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    found = 0
    for place in rng.integers(8, len(whole), 150).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = Comparison.load(path)
        except StoreError as error:
            found += 1
            assert "\n" not in str(error)
        else:
            same_bits(result, loaded)
    assert found > 10


def change(name):
    """Change of a good file that makes it a bad one."""

    def words(file, key, value):
        panels = json.loads(file.attrs["panels"])
        panels[0][key] = value
        file.attrs["panels"] = json.dumps(panels)

    def replace(file, **options):
        del file["panel0/value"]
        file["panel0"].create_dataset("value", **options)

    def link(file):
        del file["panel0/value"]
        file["panel0/value"] = h5py.ExternalLink("/etc/passwd", "/x")

    def twice(file):
        del file["panel0/null"]
        file["panel0/null"] = file["panel0/value"]

    return {
        "no version": lambda file: file.attrs.__delitem__("version"),
        "version of words": lambda file: file.attrs.__setitem__("version", "two"),
        "no samples": lambda file: file.attrs.__delitem__("n"),
        "negative samples": lambda file: file.attrs.__setitem__("n", -3),
        "no panels": lambda file: file.attrs.__setitem__("panels", "[]"),
        "panels of nothing": lambda file: file.attrs.__setitem__("panels", "[null]"),
        "too many panels": lambda file: file.attrs.__setitem__("panels", json.dumps([{}] * 9)),
        "no JSON": lambda file: file.attrs.__setitem__("provenance", "{"),
        "deep JSON": lambda file: file.attrs.__setitem__("provenance", "[" * 100_000),
        "provenance of a list": lambda file: file.attrs.__setitem__("provenance", "[]"),
        "warnings of numbers": lambda file: file.attrs.__setitem__("warnings", "[1]"),
        "levels of words": lambda file: file.attrs.__setitem__("levels", '[["a", "b"]]'),
        "huge levels": lambda file: file.attrs.__setitem__("levels", f"[[1{'0' * 400}, 1]]"),
        "another number of levels": lambda file: file.attrs.__setitem__("levels", "[[1, 1]]"),
        "another number of sites": lambda file: words(file, "sites_a", ["x"]),
        "sites of numbers": lambda file: words(file, "sites_a", [1, 2, 3]),
        "unknown direction": lambda file: words(file, "direction", "upwards"),
        "bounds of words": lambda file: words(file, "bounds", ["a", "b"]),
        "how of numbers": lambda file: words(file, "how", {"plan": 3}),
        "missing array": lambda file: file["panel0"].__delitem__("q"),
        "array of words": lambda file: replace(file, data=np.full((2, 3, 3), b"x")),
        "array elsewhere": link,
        "array under two names": twice,
        "array that is not stored": lambda file: replace(file, shape=(2, 3, 3), dtype="f8"),
    }[name]


CHANGES = [
    "no version", "version of words", "no samples", "negative samples", "no panels", "panels of nothing",
    "too many panels", "no JSON", "deep JSON", "provenance of a list", "warnings of numbers",
    "levels of words", "huge levels", "another number of levels", "another number of sites",
    "sites of numbers", "unknown direction", "bounds of words", "how of numbers", "missing array",
    "array of words", "array elsewhere", "array under two names", "array that is not stored",
]  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_nonsense_is_refused(path, name):
    make_comparison().save(path)
    with h5py.File(path, "r+") as file:
        change(name)(file)
    refused(path, "expected a whole saved comparison, found a damaged one .*; copy it or compare again")


def test_promised_sizes_take_no_memory(path):
    make_comparison().save(path)
    huge = 20_000
    with h5py.File(path, "r+") as file:
        panels = json.loads(file.attrs["panels"])
        panels[0]["sites_a"] = panels[0]["sites_b"] = [str(site) for site in range(huge)]
        file.attrs["panels"] = json.dumps(panels)
        for name in (*QUANTITIES, "flags"):
            del file["panel0"][name]
            shape = (2, huge, huge)
            file["panel0"].create_dataset(
                name, shape=shape, dtype="f8", chunks=(1, 100, 100), compression="gzip"
            )
    tracemalloc.start()
    refused(path, "promises 6400000000 bytes, 0 are stored")
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_a_change_of_the_layout_needs_a_new_version(path):
    assert saved.VERSION == 2
    make_comparison().save(path)
    with h5py.File(io.BytesIO(path.read_bytes()), "r") as file:
        assert set(file.attrs) == {"format", "version", "n", "levels", "warnings", "provenance", "panels"}
        assert set(file["panel0"]) == {"sigma", "sigma_b", "site_a", "site_b", "flags", *QUANTITIES}
        assert set(json.loads(file.attrs["panels"])[0]) == {
            "measure", "direction", "title", "bounds", "a", "b", "sites_a", "sites_b", "remarks", "how",
        }  # fmt: skip
