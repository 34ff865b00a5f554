"""Feature files: round trip, layout, other readers, resuming, and wrong requests."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from featlens.errors import SiteError, StoreError, UsageError
from featlens.store import FORMAT, VERSION, FeatureStore, FeatureWriter, SiteInfo
from featlens.store.layout import chunk_rows

N = 700


def features(n, seed=0, widths=(("enc.conv", 8), ("dec#0", 3))):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n, width)).astype(np.float32) for name, width in widths}


def create(path, n=N, sigmas=(0.5, 2.0), manifest=None, **options):
    sites = [
        SiteInfo("enc.conv", 0, 8, channels=8, resolution=16, reducer="gap"),
        SiteInfo("dec#0", 1, 3, reducer="gap"),
    ]
    return FeatureWriter.create(path, sites, sigmas, np.arange(n) + 5, manifest or {"model": "m"}, **options)


def cut(block, start, stop):
    return {name: values[start:stop] for name, values in block.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


def test_round_trip(path):
    blocks = [features(N, seed) for seed in range(2)]
    labels = np.arange(N) % 10
    with create(path, manifest={"model": "m", "nested": [1, None, "x"]}, labels=labels) as writer:
        for index, block in enumerate(blocks):
            writer.append(index, block)
    with FeatureStore(path) as store:
        assert store.complete
        assert list(store.sites) == ["enc.conv", "dec#0"]
        assert store.sites["enc.conv"] == SiteInfo("enc.conv", 0, 8, 8, 16, "gap")
        assert store.sigmas.tolist() == [0.5, 2.0]
        assert np.array_equal(store.ids, np.arange(N) + 5)
        assert np.array_equal(store.labels, labels)
        assert store.rows_done.tolist() == [N, N]
        assert {key: store.manifest[key] for key in ("model", "nested")} == {
            "model": "m",
            "nested": [1, None, "x"],
        }
        for sigma, block in zip((0.5, 2.0), blocks, strict=True):
            for site, values in block.items():
                read = store.read(site, sigma)
                assert read.dtype == np.float32
                assert np.array_equal(read, values)
                assert np.array_equal(store.read(site, sigma, slice(300, 302)), values[300:302])
        assert "2 sites, 2 sigmas, 700 samples, complete" in repr(store)


def test_blocks_written_one_by_one_give_the_same_bytes_as_all_at_once(path, tmp_path):
    block = features(N)
    with create(path, sigmas=[0.5]) as writer:
        assert N % writer.block
        for start in range(0, N, writer.block):
            writer.append(0, cut(block, start, start + writer.block))
            assert writer.done(0) == min(N, start + writer.block)
    with create(tmp_path / "b.h5", sigmas=[0.5]) as writer:
        writer.append(0, block)
    assert path.read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_float16_storage_is_read_as_float32(path):
    block = features(N)
    with create(path, sigmas=[0.5], dtype="float16") as writer:
        writer.append(0, block)
    with FeatureStore(path) as store:
        read = store.read("enc.conv", 0.5)
        assert read.dtype == np.float32
        assert np.array_equal(read, block["enc.conv"].astype(np.float16).astype(np.float32))


def test_chunks_of_wide_sites_stay_small():
    assert chunk_rows(10_000, [8, 64], 4) == 256
    assert chunk_rows(100, [8], 4) == 100
    assert chunk_rows(10_000, [8, 4096], 4) * 4096 * 4 <= 1 << 18
    assert chunk_rows(10_000, [10**7], 4) == 1


def test_file_follows_the_documented_layout(path):
    with create(path, labels=np.zeros(N, dtype=np.int64)) as writer:
        writer.append(0, features(N))
    with h5py.File(path) as file:
        assert (file.attrs["format"], file.attrs["version"], file.attrs["complete"]) == (FORMAT, VERSION, 0)
        assert json.loads(file.attrs["manifest"])["creator"].startswith("featlens ")
        kinds = {name: file[name].dtype.str for name in ("sigma", "sample", "label", "rows_done")}
        assert kinds == {"sigma": "<f8", "sample": "<i8", "label": "<i8", "rows_done": "<i8"}
        assert file["rows_done"][:].tolist() == [N, 0]
        dataset = file["sites/enc.conv"]
        assert dataset.shape == (2, N, 8)
        assert dataset.dtype == np.float32
        assert dataset.fletcher32
        assert dataset.chunks == (1, 256, 8)
        assert np.isnan(dataset.fillvalue)
        assert np.isnan(dataset[1]).all()
        assert [dimension[0].name for dimension in dataset.dims] == [
            "/sigma",
            "/sample",
            "/sites/enc.conv_feature",
        ]


@pytest.mark.parametrize("taken", ["enc_feature", "enc_feature_"])
def test_a_site_may_be_named_like_the_axis_of_another(path, taken):
    sites = [SiteInfo("enc", 0, 2), SiteInfo(taken, 1, 3)]
    with FeatureWriter.create(path, sites, [0.5], [1, 2], {}) as writer:
        writer.append(0, {"enc": np.zeros((2, 2)), taken: np.ones((2, 3))})
    with FeatureStore(path) as store:
        assert list(store.sites) == ["enc", taken]
        assert store.read(taken, 0.5).tolist() == [[1.0] * 3] * 2


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
        assert sites["enc.conv"].attrs["resolution"] == 16


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


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, r"expected features of \['dec#0', 'enc\.conv'\], got \[\]"),
        ({"enc.conv": np.zeros((256, 8))}, r"got \['enc\.conv'\]"),
        (
            {"enc.conv": np.zeros((256, 8)), "dec#0": np.zeros((256, 1))},
            r"expected \(256, 3\) features of 'dec#0'",
        ),
        ({"enc.conv": np.zeros((256, 8)), "dec#0": np.zeros((10, 3))}, r"got \(10, 3\)"),
        ({"enc.conv": np.zeros((100, 8)), "dec#0": np.zeros((100, 3))}, "append multiples of 256 rows"),
        ({"enc.conv": np.zeros((1024, 8)), "dec#0": np.zeros((1024, 3))}, "1024 rows at row 0 of 700"),
    ],
)
def test_wrong_blocks_are_refused_and_nothing_is_written(path, block, message):
    with create(path) as writer:
        with pytest.raises(StoreError, match=message):
            writer.append(0, block)
        assert writer.done(0) == 0


@pytest.mark.parametrize("name", ["enc/conv", "/enc", "..", ".", "", "a\0b"])
def test_site_names_that_are_paths_are_refused(path, name):
    with pytest.raises(StoreError, match="cannot be stored: it must not be empty"):
        FeatureWriter.create(path, [SiteInfo(name, 0, 2)], [0.5], [1], {})
    assert not path.exists()


def test_files_without_rows_sites_sigmas_or_features_are_refused(path):
    site = SiteInfo("a", 0, 2)
    for sites, sigmas, ids in (([], [0.5], [1]), ([site], [], [1]), ([site], [0.5], [])):
        with pytest.raises(StoreError, match="at least one site, one sigma and one sample"):
            FeatureWriter.create(path, sites, sigmas, ids, {})
    for sites in ([site, SiteInfo("a", 1, 3)], [SiteInfo("a", 0, 0)]):
        with pytest.raises(StoreError, match="site 'a' is empty or given twice"):
            FeatureWriter.create(path, sites, [0.5], [1], {})
    assert not path.exists()


def test_rows_that_are_done_can_be_read_from_an_incomplete_file(path, make_store):
    written = make_store(path, n=600, rows=256)
    with FeatureStore(path) as store:
        assert not store.complete
        assert "256 rows done" in repr(store)
        assert np.array_equal(store.read("enc.conv", 0.5, slice(0, 256)), written["enc.conv", 0.5][:256])
        with pytest.raises(StoreError, match=r"rows 0\.\.257 of sigma 0\.5 were asked for, 256 are done"):
            store.read("enc.conv", 0.5, slice(0, 257))


def test_resume_finishes_a_file_and_refuses_another_request(path):
    block = features(N)
    with create(path, sigmas=[0.5], manifest={"model": "m", "reducer": "gap"}) as writer:
        writer.append(0, cut(block, 0, 256))
    with pytest.raises(
        StoreError, match=r"begun with other settings \(reducer: 'gap' there, 'flatten' now\)"
    ):
        FeatureWriter.resume(path, {"model": "m", "reducer": "flatten"})
    with pytest.raises(StoreError, match=r"begun with other settings \(reducer: 'gap' there, None now\)"):
        FeatureWriter.resume(path, {"model": "m"})
    with FeatureWriter.resume(path, {"model": "m", "reducer": "gap"}) as writer:
        assert writer.done(0) == 256
        writer.append(0, cut(block, 256, N))
    with FeatureStore(path) as store:
        assert store.complete
        assert np.array_equal(store.read("enc.conv", 0.5), block["enc.conv"])


def test_a_second_writer_in_the_same_process_is_refused(path):
    with create(path):
        for again in (lambda: FeatureWriter.resume(path, {"model": "m"}), lambda: create(path)):
            with pytest.raises(
                StoreError, match=r"a\.h5 is being written in this process; close that writer first"
            ):
                again()
    create(path).close()


def test_a_writer_is_refused_while_the_file_is_read_and_the_reader_goes_on(path, make_store):
    written = make_store(path, n=600, rows=256)
    with FeatureStore(path) as store:
        with pytest.raises(StoreError, match="is open for reading in this process; close that store first"):
            FeatureWriter.resume(path, store.manifest)
        assert np.array_equal(store.read("dec.conv", 0.5, slice(0, 9)), written["dec.conv", 0.5][:9])
