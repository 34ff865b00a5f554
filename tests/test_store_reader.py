"""Reading feature files: rows and blocks, other tools on either side, and wrong requests."""

from __future__ import annotations

import itertools

import h5py
import numpy as np
import pytest

from featlens.errors import SiteError, StoreError, UsageError
from featlens.store import FORMAT, FeatureStore, FeatureWriter, SiteInfo
from tests.store_helpers import N, create, features


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.mark.parametrize(
    ("size", "edges"), [(None, [0, N]), (256, [0, 256, 512, N]), (300, [0, 300, 600, N])]
)
def test_blocks_are_read_as_they_are_asked_for(path, size, edges):
    block = features(N)
    with create(path, sigmas=[0.5]) as writer:
        writer.append(0, block)
    with FeatureStore(path) as store:
        found = list(store.blocks("enc.conv", 0.5, size))
        assert [(rows.start, rows.stop) for rows, _ in found] == list(itertools.pairwise(edges))
        assert np.array_equal(np.concatenate([values for _, values in found]), block["enc.conv"])
        lazy = store.blocks("enc.conv", 0.5, 1)
        next(lazy)
    with pytest.raises(StoreError, match=r"a\.h5 was closed"):
        list(lazy)


def test_blocks_of_wide_sites_are_whole_chunks_of_about_a_mebibyte(path):
    with FeatureWriter.create(path, [SiteInfo("a", 0, 3000)], [0.5], np.arange(300), {}) as writer:
        rows = writer.block
        writer.append(0, {"a": np.zeros((300, 3000), dtype=np.float32)})
    with FeatureStore(path) as store:
        sizes = [block.nbytes for _, block in store.blocks("a", 0.5)]
        assert rows * 3000 * 4 == sizes[0] <= 1 << 20 < 2 * sizes[0]


def test_blocks_of_an_interrupted_file_end_with_what_is_done(path, make_store):
    make_store(path, n=600, rows=256)
    with FeatureStore(path) as store:
        assert [rows.stop for rows, _ in store.blocks("enc.conv", 0.5, 200)] == [200, 256]
        # Asked for at once, not with the first block.
        with pytest.raises(SiteError, match="no site 'nope'"):
            store.blocks("nope", 0.5)
        with pytest.raises(UsageError, match="has no sigma 9"):
            store.blocks("enc.conv", 9)
        with pytest.raises(UsageError, match="a block holds at least one row, got 0"):
            store.blocks("enc.conv", 0.5, 0)


def test_rows_read_one_by_one_are_those_read_at_once_and_independent(path, make_store):
    written = make_store(path, {"a": 3, "b": 5}, sigmas=(0.5, 2.0), n=300)
    with FeatureStore(path) as store:
        for row in (0, 1, 255, 256, 299):
            for (site, sigma), values in written.items():
                found = store.read(site, sigma, slice(row, row + 1))
                assert np.array_equal(found, values[row : row + 1])
                found[:] = 7
                assert np.array_equal(store.read(site, sigma, slice(row, row + 1)), values[row : row + 1])
        assert np.array_equal(store.read("a", 0.5, slice(250, 260)), written["a", 0.5][250:260])


def test_several_readers_at_once(path, make_store, python):
    written = make_store(path)
    code = """
import sys
from featlens import FeatureStore
print(FeatureStore(sys.argv[1]).read("enc.conv", 0.5).sum())
"""
    with FeatureStore(path) as one, FeatureStore(path) as two:
        assert np.array_equal(one.read("enc.conv", 0.5), two.read("enc.conv", 0.5))
        other = python(code, path)
    assert other.returncode == 0, other.stderr
    assert float(other.stdout) == pytest.approx(float(written["enc.conv", 0.5].sum()), rel=1e-5)


def test_xarray_opens_it_with_labelled_dimensions(path):
    xarray = pytest.importorskip("xarray")
    block = features(N)
    with create(path, labels=np.arange(N)) as writer:
        writer.append(0, block)
        writer.append(1, block)
    with xarray.open_dataset(path, engine="h5netcdf") as root:
        assert root["sigma"].values.tolist() == [0.5, 2.0]
        assert root["label"].dims == ("sample",)
    with xarray.open_dataset(path, engine="h5netcdf", group="sites") as sites:
        assert sites["enc.conv"].dims == ("sigma", "sample", "enc.conv_feature")
        assert np.array_equal(sites["enc.conv"].values[0], block["enc.conv"])
        assert (sites["enc.conv"].attrs["resolution"], sites["enc.conv"].attrs["reducer"]) == (16, "gap")


def test_a_file_made_with_plain_h5py_is_read(path):
    values = features(6)["enc.conv"]
    with h5py.File(path, "w") as file:
        file.attrs.update(format=np.bytes_(FORMAT), version=1, complete=1)
        file["sigma"], file["sample"] = [0.5], np.arange(6)
        file["sites/enc.conv"] = values[None]
    with FeatureStore(path) as store:
        store.require_complete()
        assert store.labels is None
        assert np.array_equal(store.read("enc.conv", 0.5), values)
    with pytest.raises(StoreError, match="was not laid out by featlens and cannot be continued"):
        FeatureWriter.resume(path, {})


def test_other_types_and_layouts_of_another_tool_are_read(path):
    values = features(6)["enc.conv"]
    with h5py.File(path, "w", libver="earliest") as file:
        file.attrs.create("format", FORMAT, dtype=h5py.string_dtype("ascii", 40))
        file.attrs.update(version=np.int32(1), complete=np.array([1], dtype=np.uint8), manifest="{}")
        file["sigma"] = np.array([0.5, 2.0], dtype=">f4")
        file["sample"] = np.arange(6, dtype=np.int32)
        file["label"] = np.arange(6, dtype=np.uint8)
        file["note"], file["sites/more/deeper"] = "not ours", 1
        file["sites/double"] = np.stack([values, values]).astype(np.float64)
        file["sites/big"] = np.stack([values, values]).astype(">f4")
        file.create_dataset(
            "sites/packed",
            data=np.stack([values, values]),
            chunks=(2, 4, 3),
            compression="gzip",
            shuffle=True,
        )
    with FeatureStore(path) as store:
        assert sorted(store.sites) == ["big", "double", "packed"]
        assert store.sigmas.tolist() == [0.5, 2.0]
        assert (store.ids.dtype, store.labels.tolist()) == (np.int64, list(range(6)))
        assert not store.checksummed
        assert store.verify() == []
        for site in store.sites:
            assert store.read(site, 2.0).dtype == np.float32
            assert np.array_equal(store.read(site, 2.0), values)
            assert np.array_equal(store.read(site, 2.0, slice(3, 5)), values[3:5])
            assert np.array_equal(np.concatenate([block for _, block in store.blocks(site, 0.5)]), values)


def test_unknown_site_sigma_and_pattern_are_named(path):
    with create(path) as writer:
        writer.append(0, features(N))
        writer.append(1, features(N))
    with FeatureStore(path) as store:
        with pytest.raises(SiteError, match=r"no site 'enc\.cnv' in .*a\.h5: did you mean 'enc\.conv'\?"):
            store.read("enc.cnv", 0.5)
        with pytest.raises(UsageError, match=r"has no sigma 0\.7; it has 0\.5, 2"):
            store.read("enc.conv", 0.7)
        with pytest.raises(SiteError, match=r"no site 'mid\.\*' in"):
            store.select(["enc.*", "mid.*"])
        with pytest.raises(UsageError, match="rows must be contiguous, got step 2"):
            store.read("enc.conv", 0.5, slice(0, 10, 2))
        assert store.select("enc.*") == ["enc.conv"]
        assert store.read("enc.conv", 0.5, slice(5, 3)).shape == (0, 8)


def test_a_closed_store_says_so(path, make_store):
    make_store(path)
    store = FeatureStore(path)
    store.close()
    with pytest.raises(StoreError, match=r"a\.h5 was closed; open it again"):
        store.read("enc.conv", 0.5)


def test_rows_that_are_done_can_be_read_from_an_incomplete_file(path, make_store):
    written = make_store(path, n=600, rows=256)
    with FeatureStore(path) as store:
        assert not store.complete
        assert "256 rows done" in repr(store)
        assert np.array_equal(store.read("enc.conv", 0.5, slice(0, 256)), written["enc.conv", 0.5][:256])
        with pytest.raises(StoreError, match=r"rows 0\.\.257 of sigma 0\.5 were asked for, 256 are done"):
            store.read("enc.conv", 0.5, slice(0, 257))


def test_one_sigma_is_looked_up_at_a_time(path):
    with create(path) as writer:
        writer.append(0, features(N))
    with FeatureStore(path) as store:
        assert store.sigma_index(np.float32(0.5)) == 0
        for sigma in (np.array([0.5, 2.0]), "half", None):
            with pytest.raises(UsageError, match="expected one sigma"):
                store.read("enc.conv", sigma)


def test_rows_are_a_slice(a):
    with FeatureStore(a) as store, pytest.raises(UsageError, match="rows must be a slice such as"):
        store.read("enc.conv", 0.5, 3)
