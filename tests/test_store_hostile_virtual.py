"""Virtual files made to mislead a reader: rows come from feature files beside them and nowhere else."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from featlens.errors import FeatlensError
from featlens.store import FeatureStore
from tests.hostile_helpers import N, build, hide, refused


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.fixture
def secret(tmp_path):
    return hide(tmp_path)


def virtual(path, source, dataset="/sites/a", rows=slice(0, N), shape=(2, N, 3), first=0):
    build(path)
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout((2, N, 3), "f4")
        layout[:, rows, :] = h5py.VirtualSource(source, dataset, shape)[:, first : first + rows.stop, :]
        del file["sites/a"]
        file.create_virtual_dataset("sites/a", layout, fillvalue=7)


@pytest.mark.parametrize(
    ("source", "dataset", "message"),
    [
        ("/etc/hostname", "/sites/a", "takes rows from '/etc/hostname'; expected the plain name of a file"),
        ("../other.h5", "/sites/a", "expected the plain name of a file in the same folder"),
        ("sub/other.h5", "/sites/a", "expected the plain name of a file in the same folder"),
        (".", "/sites/a", "expected the plain name of a file in the same folder"),
        ("shard-%%b.h5", "/sites/a", "expected the plain name of a file in the same folder"),
        ("secret.h5", "/x", "takes rows from 'secret.h5', dataset '/x'; expected one of its sites"),
        ("secret.h5", "/sites/../x", "expected one of its sites"),
        ("secret.h5", "/sites/a", "found another HDF5 file"),
        ("secret.bin", "/sites/a", "expected a feature file (HDF5), found something else"),
        ("not-there.h5", "/sites/a", "its shard not-there.h5 is missing"),
        ("a\x1b[31m.h5", "/sites/a", "its shard a\\x1b[31m.h5 is missing"),
    ],
)
def test_virtual_features_come_from_feature_files_beside_it(
    path, secret, monkeypatch, source, dataset, message
):
    monkeypatch.chdir(secret)
    virtual(path, source, dataset)
    with pytest.raises(FeatlensError) as caught:
        FeatureStore(path)
    assert message in str(caught.value) and str(caught.value).isprintable()


def test_virtual_features_that_leave_rows_out_or_lead_back_are_refused(path, tmp_path):
    build(tmp_path / "other.h5")
    virtual(path, "other.h5")
    with FeatureStore(path) as store:
        assert store.read("a", 0.5).tolist() == [[1.0] * 3] * N
    virtual(path, "other.h5", rows=slice(0, N - 1))
    assert "its parts do not make up its 6 rows" in refused(path)
    virtual(path, "other.h5", shape=(2, N + 1, 3), first=1)
    assert "in a way that featlens does not write" in refused(path)
    build(tmp_path / "other.h5", sample=np.arange(N) + 1)
    virtual(path, "other.h5")
    assert "its shard other.h5 does not hold rows 0..6 of site 'a'" in refused(path)
    build(tmp_path / "other.h5", manifest='{"model": "another"}')
    assert "its shard other.h5 does not hold rows 0..6 of site 'a'" in refused(path)
    build(tmp_path / "other.h5", sigma=[0.5, 3.0])
    assert "its shard other.h5 does not hold rows 0..6 of site 'a'" in refused(path)
    virtual(path, "a.h5")
    assert "a.h5 is a part of a virtual file and virtual itself" in refused(path)
    virtual(path, "other.h5")
    virtual(tmp_path / "other.h5", "a.h5")
    with pytest.raises(FeatlensError, match=r"other\.h5 is a part of a virtual file and virtual itself"):
        FeatureStore(path)
