"""Files of format version 1 that were written once are read for ever (docs/reference/file-format.md)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from featlens.store import FeatureStore, FeatureWriter

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture(scope="module")
def made():
    """What the script that made the files says is in them."""
    names: dict[str, object] = {"__name__": "golden", "__file__": str(GOLDEN / "make_features_v1.py")}
    module = type(sys)("golden")
    sys.modules["golden"] = module
    exec(compile((GOLDEN / "make_features_v1.py").read_text(encoding="utf-8"), "golden", "exec"), names)
    return type(
        "Made", (), {key: staticmethod(value) if callable(value) else value for key, value in names.items()}
    )


def check(store, made, sites, rows):
    assert list(store.sites.values()) == sites
    assert store.sigmas.tolist() == made.SIGMAS
    assert store.ids.tolist() == [3 * number + 1 for number in range(made.SAMPLES)]
    assert store.labels.tolist() == [number % 10 for number in range(made.SAMPLES)]
    assert store.rows_done.tolist() == rows
    assert not store.complete
    assert store.checksummed and store.verify() == []
    numbers = {site.name: number for number, site in enumerate(made.SITES)}
    for site in sites:
        number = numbers[site.same_as or site.name]
        for index, sigma in enumerate(made.SIGMAS):
            expected = made.features(number, index, site.width)[: rows[index]]
            assert np.array_equal(store.read(site.name, sigma, slice(0, rows[index])), expected)


def test_the_golden_file_is_read(made):
    with FeatureStore(GOLDEN / "features-v1.h5") as store:
        assert store.dtype == "float16"
        assert store.manifest.pop("creator").startswith("featlens 0.1.0")
        assert store.manifest == made.MANIFEST
        check(store, made, made.SITES, [70, 70, 32])


def test_the_first_golden_file_is_read(made):
    plain = [site for site in made.SITES if not site.same_as]
    with FeatureStore(GOLDEN / "features-v1-first.h5") as store:
        known = [store.sites[site.name] for site in plain]
        assert [(site.name, site.order, site.width, site.reducer, site.kind) for site in known] == [
            (site.name, site.order, site.width, site.reducer, "") for site in plain
        ]
        check(store, made, known, [70, 70, 0])


@pytest.mark.parametrize("name", ["features-v1.h5", "features-v1-first.h5"])
def test_golden_files_are_finished_by_a_later_writer(made, tmp_path, name):
    path = Path(shutil.copy(GOLDEN / name, tmp_path / "a.h5"))
    numbers = {site.name: number for number, site in enumerate(made.SITES)}
    with FeatureStore(path) as store:
        manifest = store.manifest
    with FeatureWriter.resume(path, manifest) as writer:
        done = writer.done(2)
        widths = {site.name: site.width for site in made.SITES}
        writer.append(
            2, {site: made.features(numbers[site], 2, widths[site])[done:] for site in writer.names}
        )
    with FeatureStore(path) as store:
        store.require_complete()
        assert np.array_equal(store.read("größe", 2.5), made.features(3, 2, 1))
        assert store.verify() == []


def test_the_golden_file_in_plain_h5py(made):
    with h5py.File(GOLDEN / "features-v1.h5") as file:
        assert json.loads(file.attrs["manifest"])["dtype"] == "float16"
        dataset = file["sites/enc.8x8_block0"]
        assert dataset.dtype == np.float16
        assert dataset == file["sites/dec#0"]
        assert np.array_equal(dataset[1], made.features(0, 1, 12).astype(np.float16))
        assert np.isnan(dataset[2, 32:]).all()


def test_the_golden_files_are_small():
    assert all(0 < path.stat().st_size < 40_000 for path in GOLDEN.glob("*.h5"))
    assert len(list(GOLDEN.glob("*.h5"))) == 2
