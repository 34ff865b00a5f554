"""Writing feature files: round trip, layout, resuming, and wrong requests."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from featlens.errors import StoreError
from featlens.store import FORMAT, VERSION, FeatureStore, FeatureWriter, SiteInfo
from featlens.store.layout import chunk_rows
from tests.store_helpers import N, create, cut, features


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


def test_float16_that_cannot_hold_a_value_is_refused_with_its_site(path):
    block = features(N)
    with create(path, sigmas=[0.5], dtype="float16") as writer:
        block["dec#0"][300, 1] = -70_000
        with pytest.raises(
            StoreError, match=r"features of site 'dec#0' reach 70000, float16 ends at 65504; store wider"
        ):
            writer.append(0, block)
        assert writer.done(0) == 0
        block["dec#0"][300, 1] = np.inf
        writer.append(0, block)
    with FeatureStore(path) as store:
        assert store.dtype == "float16"
        assert store.read("dec#0", 0.5)[300, 1] == np.inf


def test_other_types_of_numbers_are_refused(path):
    with pytest.raises(StoreError, match="stored as float32 or float16, got 'float64'"):
        create(path, dtype="float64")
    with pytest.raises(StoreError, match="a block holds at least one row, got 0"):
        create(path, block=0)
    with pytest.raises(StoreError, match=r"expected 700 labels, got shape \(3,\)"):
        create(path, labels=np.arange(3))
    for sigmas in ([0.5, 0.5], [0.0], [np.nan], [np.inf, 1.0]):
        with pytest.raises(StoreError, match="sigmas must be different numbers above 0"):
            create(path, sigmas=sigmas)
    assert not path.exists()


def test_chunks_of_wide_sites_stay_small():
    assert chunk_rows(10_000, [8, 64], 4) == 256
    assert chunk_rows(100, [8], 4) == 100
    assert chunk_rows(10_000, [8, 4096], 4) * 4096 * 4 == 1 << 20
    assert chunk_rows(10_000, [8, 4096], 2) == 128
    assert chunk_rows(10_000, [10**7], 4) == 1


def test_file_follows_the_documented_layout(path):
    with create(path, labels=np.zeros(N, dtype=np.int64)) as writer:
        writer.append(0, features(N))
    with h5py.File(path) as file:
        format_, version, complete = (file.attrs[key] for key in ("format", "version", "complete"))
        assert (format_.decode(), version, complete) == (FORMAT, VERSION, 0)
        assert json.loads(file.attrs["manifest"])["creator"].startswith("featlens ")
        kinds = {name: file[name].dtype.str for name in ("sigma", "sample", "label", "rows_done")}
        assert kinds == {"sigma": "<f8", "sample": "<i8", "label": "<i8", "rows_done": "<i8"}
        assert file["rows_done"][:].tolist() == [N, 0]
        assert all(file[name].fletcher32 for name in ("sigma", "sample", "label"))
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


@pytest.mark.parametrize(
    "name",
    ["enc/conv", "/enc", "..", ".", "", "a\0b", "a\x1b[31mb", "a\nb", "a\u202eb", "\ud800", "x" * 1001],
)
def test_site_names_that_are_paths_are_refused(path, name):
    with pytest.raises(StoreError, match="cannot be stored: it must not be empty") as caught:
        FeatureWriter.create(path, [SiteInfo(name, 0, 2)], [0.5], [1], {})
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
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


@pytest.mark.parametrize("index", [-1, 2, 1.5, None])
def test_a_sigma_that_is_not_there_is_never_written(path, index):
    with create(path) as writer:
        before = path.read_bytes()
        with pytest.raises(StoreError, match="no sigma of index"):
            writer.append(index, features(N))
        assert path.read_bytes() == before
        writer.append(np.uint8(1), features(N))
        assert [writer.done(0), writer.done(1)] == [0, N]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_no_type_of_numbers_overflows_float16_unnoticed(path, dtype):
    with FeatureWriter.create(path, [SiteInfo("a", 0, 1)], [1.0], [0], {}, dtype="float16") as writer:
        with pytest.raises(StoreError, match="reach 65535, float16 ends at 65504"):
            writer.append(0, {"a": np.array([[65535]], dtype=dtype)})
        assert writer.done(0) == 0


@pytest.mark.parametrize("rows", [np.float32(1), np.ones((1, 1), dtype=complex), np.array([["x"]])])
def test_features_that_are_no_real_numbers_are_refused(path, rows):
    with (
        FeatureWriter.create(path, [SiteInfo("a", 0, 1)], [1.0], [0], {}) as writer,
        pytest.raises(StoreError, match=r"features of 'a', got"),
    ):
        writer.append(0, {"a": rows})


@pytest.mark.parametrize(
    "request_",
    [{"ids": [0.5, 1.5]}, {"ids": np.zeros((2, 1), int)}, {"labels": [0.5, 1]}, {"sigmas": [[1.0]]}],
)
def test_ids_and_labels_are_never_rounded(path, request_):
    given = {"sigmas": [1.0], "ids": [0, 1], "manifest": {}} | request_
    with pytest.raises(StoreError, match=r"whole numbers|expected"):
        FeatureWriter.create(path, [SiteInfo("a", 0, 1)], **given)
    assert not path.exists()
