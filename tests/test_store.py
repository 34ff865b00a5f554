"""Feature files: round trip, layout, other readers, resuming, and wrong requests."""

from __future__ import annotations

import itertools
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


SHARED = [
    SiteInfo("block", 0, 4, 4, 8, "gap", "Conv2d"),
    SiteInfo("wide", 1, 6, reducer="gap"),
    SiteInfo("block.identity", 2, 4, 4, 8, "gap", "Identity", same_as="block"),
]


def test_identical_features_are_stored_once_and_read_under_both_names(path, tmp_path):
    values = features(N, widths=(("block", 4), ("wide", 6)))
    with FeatureWriter.create(path, SHARED, [0.5], np.arange(N), {}) as writer:
        assert writer.names == ["block", "wide"]
        with pytest.raises(StoreError, match=r"expected features of \['block', 'wide'\], got .*identity"):
            writer.append(0, {**values, "block.identity": values["block"]})
        writer.append(0, values)
    with FeatureWriter.create(tmp_path / "b.h5", SHARED[:2], [0.5], np.arange(N), {}) as writer:
        writer.append(0, values)
    assert path.stat().st_size - (tmp_path / "b.h5").stat().st_size < 2000
    with FeatureStore(path) as store:
        assert list(store.sites.values()) == SHARED
        assert np.array_equal(store.read("block.identity", 0.5), values["block"])
        assert store.select("block.*") == ["block.identity"]
    with h5py.File(path) as file:
        assert file["sites/block"] == file["sites/block.identity"]
        told = json.loads(file["sites/block"].attrs["aliases"])
    assert told == {
        "block.identity": {"order": 2, "channels": 4, "resolution": 8, "reducer": "gap", "kind": "Identity"}
    }


def test_xarray_shows_shared_features_under_both_names(path):
    xarray = pytest.importorskip("xarray")
    values = features(N, widths=(("block", 4), ("wide", 6)))
    with FeatureWriter.create(path, SHARED, [0.5], np.arange(N), {}) as writer:
        writer.append(0, values)
    with xarray.open_dataset(path, engine="h5netcdf", group="sites") as sites:
        assert sites["block.identity"].dims == sites["block"].dims == ("sigma", "sample", "block_feature")
        assert np.array_equal(sites["block.identity"].values, sites["block"].values)


def test_an_interrupted_file_with_shared_features_is_resumed(path):
    values = features(N, widths=(("block", 4), ("wide", 6)))
    with FeatureWriter.create(path, SHARED, [0.5], np.arange(N), {}) as writer:
        writer.append(0, cut(values, 0, 256))
    with FeatureWriter.resume(path, {}) as writer:
        assert writer.names == ["block", "wide"]
        writer.append(0, cut(values, 256, N))
    with FeatureStore(path) as store:
        assert np.array_equal(store.read("block.identity", 0.5), values["block"])


def test_links_that_another_tool_made_are_two_ordinary_sites(path):
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=1, complete=1)
        file["sigma"], file["sample"] = [0.5], np.arange(6)
        file["sites/a"] = np.ones((1, 6, 2), dtype=np.float32)
        file["sites/b"] = file["sites/a"]
        file["sites/c"] = np.zeros((1, 6, 2), dtype=np.float32)
        # As h5copy leaves it: the other name is a dataset of its own, or gone.
        file["sites/c"].attrs["aliases"] = json.dumps({"c": {"order": 9}, "gone": {"order": 1}})
    with FeatureStore(path) as store:
        assert list(store.sites) == ["a", "b", "c"]
        assert {site.same_as for site in store.sites.values()} == {""}
        assert store.sites["c"].order == 9


@pytest.mark.parametrize(
    "other",
    [
        SiteInfo("b", 1, 2, same_as="nowhere"),
        SiteInfo("b", 1, 3, same_as="a"),
        SiteInfo("b", 1, 2, same_as="b"),
    ],
)
def test_features_that_cannot_be_shared_are_refused(path, other):
    with pytest.raises(StoreError, match="site 'b' cannot share the features of"):
        FeatureWriter.create(path, [SiteInfo("a", 0, 2), other], [0.5], [1], {})


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
