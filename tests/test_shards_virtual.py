"""Virtual files: they read as the merged one, and refer to the shards beside them and to nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

from featlens.errors import StoreError, UsageError
from featlens.store import FeatureStore
from featlens.store.shards import find_shards, is_virtual, merge
from tests.shard_helpers import SIGMAS, N, dump, features, flip, write, write_shards


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "teacher.h5"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "one process"
    folder.mkdir()
    return write(folder / "whole.h5")


def test_a_virtual_file_reads_as_the_merged_one_and_holds_no_features(
    out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    monkeypatch.chdir("/")
    virtual, real = dump(out), dump(whole)
    for name, entry in virtual.items():
        if name != "/":
            only = {"chunks", "filters"} if entry["attrs"].get("order") else set()
            assert {key: entry[key] for key in entry.keys() - only} == {
                key: real[name][key] for key in entry.keys() - only
            }
    assert virtual["/"] == real["/"]
    assert virtual.keys() == real.keys()
    with FeatureStore(out) as store, FeatureStore(whole) as expected:
        assert is_virtual(store) and not is_virtual(expected)
        assert store.complete and store.manifest == expected.manifest
        assert store.sites == expected.sites
        for site in store.sites:
            for sigma in SIGMAS:
                assert np.array_equal(store.read(site, sigma), expected.read(site, sigma))
    with h5py.File(out) as file:
        assert {source.file_name for source in file["sites/dec#0"].virtual_sources()} == {
            path.name for path in shards
        }


def test_a_virtual_file_is_labelled_netcdf_and_moves_with_its_shards(out: Path, tmp_path: Path) -> None:
    merge(out, write_shards(out, 3), virtual=True)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (out, *find_shards(out)[1]):
        path.rename(moved / path.name)
    with xarray.open_dataset(moved / out.name, engine="h5netcdf", group="sites") as data:
        assert data["dec#0"].dims == ("sigma", "sample", "dec#0_feature")
        assert np.array_equal(data["dec#0"][1], features("dec#0", 1, slice(0, N)))
    with xarray.open_dataset(moved / out.name, engine="h5netcdf") as data:
        assert data["sample"].values.tolist() == list(range(100, 100 + N))
        assert data["label"].dims == ("sample",)


def test_a_missing_shard_of_a_virtual_file_is_named_when_it_is_opened(out: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    shards[1].unlink()
    with pytest.raises(StoreError, match=r"teacher\.shard-1-of-2\.h5") as caught:
        FeatureStore(out)
    assert "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_damage_in_a_shard_is_found_through_the_virtual_file(out: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    flip(shards[1], "dec#0", (1, 16, 0))
    with FeatureStore(out) as store:
        assert store.read("dec#0", 2.0, slice(0, 48)).shape == (48, 3)
        with pytest.raises(StoreError, match=r"site 'dec#0', sigma 2, rows .* damaged"):
            store.read("dec#0", 2.0)


def test_shards_elsewhere_cannot_be_referred_to(out: Path, tmp_path: Path) -> None:
    shards = write_shards(out, 2)
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(shards[1], away)
    with pytest.raises(UsageError, match=r"does not lie in the folder of .*, as --virtual needs; move it"):
        merge(out, [shards[0], away / shards[1].name], virtual=True)
    shards[1].symlink_to(away / shards[1].name)
    with pytest.raises(UsageError, match="does not lie in the folder"):
        merge(out, shards, virtual=True)
    assert not out.exists()


def test_a_name_that_hdf5_would_read_as_a_pattern_cannot_be_referred_to(tmp_path: Path) -> None:
    out = tmp_path / "a%b.h5"
    shards = write_shards(out, 2)
    with pytest.raises(UsageError, match="HDF5 reads '%' in the name"):
        merge(out, shards, virtual=True)
    merge(out, shards)


def test_a_virtual_file_becomes_a_real_one_and_back(out: Path, whole: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    merge(out, shards)
    assert out.read_bytes() == whole.read_bytes()
    merge(out, shards, virtual=True)
    with FeatureStore(out) as store:
        assert is_virtual(store)


def test_hdf5_never_looks_for_shards_elsewhere(out: Path, tmp_path: Path, python: Any) -> None:
    from featlens.store.pack import pack

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    for shard in shards:
        packed = pack(shard, elsewhere / shard.name)
        with h5py.File(packed, "r+") as file:
            for dataset in file["sites"].values():
                if dataset.ndim == 3:
                    dataset[...] = 0
    code = """
import os, sys
os.environ["HDF5_VDS_PREFIX"] = sys.argv[1]  # Before HDF5 is loaded.
import numpy as np
from featlens.store import FeatureStore
from featlens.store.pack import pack
with FeatureStore(pack(sys.argv[2], sys.argv[3])) as copy, FeatureStore(sys.argv[2]) as store:
    for site in store.sites:
        for sigma in store.sigmas:
            assert store.read(site, sigma).any()
            assert np.array_equal(copy.read(site, sigma), store.read(site, sigma))
"""
    run = python(code, elsewhere, out, tmp_path / "copy.h5")
    assert run.returncode == 0, run.stderr
