"""Every way in which a feature file can be wrong ends in one line that names it; whole parts can be read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from featlens import compare
from featlens.errors import FeatlensError, StoreError
from featlens.store import FeatureStore

WIDTHS = {"enc.conv": 8, "dec#0": 3}
N = 700


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.fixture
def whole(path, make_store):
    make_store(path, WIDTHS, sigmas=(0.5, 2.0), n=N)
    return path


def not_hdf5(path):
    path.write_text("sigma,site\n")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-500])


def header_only(path):
    path.write_bytes(path.read_bytes()[:300])


def foreign(path):
    with h5py.File(path, "w") as file:
        file["x"] = [1.0]


def newer(path):
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 2


def no_version(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["version"]


def bad_manifest(path):
    with h5py.File(path, "r+") as file:
        file.attrs["manifest"] = "{"


def bad_shape(path):
    with h5py.File(path, "r+") as file:
        del file["sites/dec#0"]
        file["sites/dec#0"] = np.zeros((1, 2, 3))


def no_sites(path):
    with h5py.File(path, "r+") as file:
        del file["sites"]


def folder(path):
    path.unlink()
    path.mkdir()


def missing(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (not_hdf5, "expected a feature file (HDF5), found something else"),
        (empty, "found an empty file"),
        (truncated, "is truncated"),
        (header_only, "truncated"),
        (foreign, "found another HDF5 file"),
        (newer, "was written by a newer featlens (format version 2, this one reads 1)"),
        (no_version, "is damaged or not a feature file"),
        (bad_manifest, "is damaged or not a feature file"),
        (bad_shape, "site 'dec#0' has shape (1, 2, 3), expected (2, 700, features)"),
        (no_sites, "is damaged or not a feature file"),
        (folder, "this is a folder; give the path of a file"),
        (missing, "there is no such file or folder"),
    ],
)
@pytest.mark.parametrize(
    "use", [FeatureStore, lambda path: compare({"a": path, "b": path})], ids=["open", "compare"]
)
def test_unusable_files_are_refused_in_one_line_that_names_them(whole, spoil, message, use):
    spoil(whole)
    with pytest.raises(FeatlensError) as caught:
        use(whole)
    assert message in str(caught.value)
    assert str(whole) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_refused_file_is_not_held_open(whole):
    newer(whole)
    with pytest.raises(StoreError):
        FeatureStore(whole)
    with h5py.File(whole, "r+") as file:
        file.attrs["version"] = 1
    FeatureStore(whole).close()


def test_a_flipped_bit_is_found_and_named_with_site_and_rows(whole):
    with h5py.File(whole) as file:
        chunk = file["sites/enc.conv"].id.get_chunk_info_by_coord((1, 256, 0))
    data = bytearray(whole.read_bytes())
    data[chunk.byte_offset + 100] ^= 4
    whole.write_bytes(data)
    with FeatureStore(whole) as store:
        with pytest.raises(
            StoreError, match=r"site 'enc\.conv', sigma 2, rows 200\.\.300 are damaged"
        ) as caught:
            store.read("enc.conv", 2.0, slice(200, 300))
        assert "\n" not in str(caught.value)
        assert store.read("enc.conv", 2.0, slice(0, 256)).shape == (256, 8)
        assert store.read("enc.conv", 0.5).shape == (N, 8)
        assert store.read("dec#0", 2.0).shape == (N, 3)


def test_an_incomplete_file_is_refused_by_compare_and_named(path, tmp_path, make_store):
    make_store(tmp_path / "whole.h5", n=600)
    make_store(path, n=600, rows=256)
    with pytest.raises(
        StoreError, match=r"a\.h5 is incomplete: 256 of 600 rows; run the extract command again"
    ):
        compare({"whole": tmp_path / "whole.h5", "part": path})
