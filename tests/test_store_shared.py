"""Sites with the same features: stored once, read under each name."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pytest

from featlens.errors import StoreError
from featlens.store import FORMAT, FeatureStore, FeatureWriter, SiteInfo
from tests.store_helpers import N, cut, features

SHARED = [
    SiteInfo("block", 0, 4, 4, 8, "gap", "Conv2d"),
    SiteInfo("wide", 1, 6, reducer="gap"),
    SiteInfo("block.identity", 2, 4, 4, 8, "gap", "Identity", same_as="block"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


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
