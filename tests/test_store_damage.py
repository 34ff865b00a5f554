"""Every way in which a feature file can be wrong ends in one line that names it; whole parts can be read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from featlens import compare
from featlens.errors import FeatlensError, StoreError
from featlens.store import FORMAT, Damage, FeatureStore, FeatureWriter, SiteInfo

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
            StoreError, match=r"site 'enc\.conv', sigma 2, rows 256\.\.300 are damaged \(checksum mismatch\)"
        ) as caught:
            store.read("enc.conv", 2.0, slice(200, 300))
        assert "\n" not in str(caught.value)
        assert store.read("enc.conv", 2.0, slice(0, 256)).shape == (256, 8)
        assert store.read("enc.conv", 0.5).shape == (N, 8)
        assert store.read("dec#0", 2.0).shape == (N, 3)
        assert store.checksummed
        assert store.verify() == [Damage("enc.conv", 2.0, 256, 512, "checksum mismatch")]


def flip(path, place, mask=4):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def test_verify_names_every_damaged_chunk_and_only_those_that_are_done(path, make_store):
    make_store(path, WIDTHS, sigmas=(0.5, 2.0), n=N, rows=512)
    with h5py.File(path) as file:
        for site, place in (("enc.conv", (0, 0, 0)), ("enc.conv", (1, 512, 0)), ("dec#0", (1, 256, 0))):
            flip(path, file["sites"][site].id.get_chunk_info_by_coord(place).byte_offset)
    with FeatureStore(path) as store:
        found = [(damage.site, damage.sigma, damage.start, damage.stop) for damage in store.verify()]
    assert found == [("enc.conv", 0.5, 0, 256), ("dec#0", 2.0, 256, 512)]


def test_damage_of_shared_features_is_named_once_and_read_is_refused_under_both_names(path):
    sites = [SiteInfo("a", 0, 2), SiteInfo("b", 1, 2, same_as="a")]
    with FeatureWriter.create(path, sites, [0.5], np.arange(300), {}) as writer:
        writer.append(0, {"a": np.ones((300, 2))})
    with h5py.File(path) as file:
        place = file["sites/a"].id.get_chunk_info(1).byte_offset
    flip(path, place)
    with FeatureStore(path) as store:
        assert [str(damage) for damage in store.verify()] == [
            "site 'a', sigma 0.5, rows 256..300 are damaged (checksum mismatch)"
        ]
        with pytest.raises(StoreError, match=r"site 'b', sigma 0\.5, rows 256\.\.300 are damaged"):
            store.read("b", 0.5)
        with pytest.raises(StoreError, match=r"site 'b', sigma 0\.5, rows 256\.\.300 are damaged"):
            list(store.blocks("b", 0.5))


def test_a_file_without_checksums_says_so(path):
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=1, complete=1)
        file["sigma"], file["sample"] = [0.5], np.arange(6)
        file["sites/a"] = np.ones((1, 6, 2), dtype=np.float32)
    with FeatureStore(path) as store:
        assert not store.checksummed
        assert store.verify() == []


def test_rows_that_were_never_written_are_damage(path):
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=1, complete=1)
        file["sigma"], file["sample"] = [0.5], np.arange(600)
        dataset = file.create_dataset("sites/a", (1, 600, 2), "f4", chunks=(1, 256, 2), compression="gzip")
        dataset[0, :256] = 1
    with FeatureStore(path) as store:
        found = [(damage.start, damage.stop, damage.reason) for damage in store.verify()]
        assert (store.read("a", 0.5, slice(0, 256)) == 1).all()
        with pytest.raises(StoreError, match=r"rows 256\.\.512.*never written"):
            store.read("a", 0.5)
        with pytest.raises(StoreError, match="never written"):
            list(store.blocks("a", 0.5))
    assert found == [(256, 512, "never written"), (512, 600, "never written")]


@pytest.mark.parametrize("name", ["sigma", "sample", "label"])
def test_a_flipped_bit_in_what_the_rows_mean_is_found(path, make_store, name):
    make_store(path, n=40, labels=np.arange(40))
    with h5py.File(path) as file:
        place = file[name].id.get_chunk_info(0).byte_offset
    flip(path, place)
    with pytest.raises(StoreError, match=rf"'/{name}' cannot be read"):
        FeatureStore(path)


def test_a_flipped_bit_in_the_manifest_is_found(path, make_store):
    make_store(path, n=40)
    flip(path, path.read_bytes().index(b"noise_seed"))
    with pytest.raises(StoreError, match=r"a\.h5 is damaged"):
        FeatureStore(path)


def test_the_checksums_are_those_of_hdf5(path, make_store):
    """A chunk that HDF5 writes anew has the very bytes that the writer put there."""
    written = make_store(path, {"a": 5, "b": 1500}, n=600)
    before = path.read_bytes()
    with h5py.File(path, "r+") as file:
        for site in ("a", "b"):
            file["sites"][site][0, :512] = written[site, 0.5][:512]
    assert path.read_bytes() == before


def test_the_last_chunk_ends_with_fill_values(path, make_store):
    make_store(path, {"a": 5}, n=600)
    with h5py.File(path) as file:
        stored = file["sites/a"].id.read_direct_chunk((0, 512, 0))[1]
    chunk = np.frombuffer(stored[:-4], dtype="<f4").reshape(256, 5)
    assert np.isfinite(chunk[:88]).all() and np.isnan(chunk[88:]).all()


def test_an_incomplete_file_is_refused_by_compare_and_named(path, tmp_path, make_store):
    make_store(tmp_path / "whole.h5", n=600)
    make_store(path, n=600, rows=256)
    with pytest.raises(
        StoreError, match=r"a\.h5 is incomplete: 256 of 600 rows; run the extract command again"
    ):
        compare({"whole": tmp_path / "whole.h5", "part": path})
