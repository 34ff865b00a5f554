"""Files made to mislead a reader: refused in one line, with nothing followed and nothing waited for."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest

from featlens.errors import FeatlensError
from featlens.store import FeatureStore
from tests.hostile_helpers import N, build, hide, refused, replace_site


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


@pytest.fixture
def secret(tmp_path):
    return hide(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": None}, "found another HDF5 file"),
        ({"format": 7}, "attribute 'format' is int64, expected a string"),
        ({"format": ["a", "b"]}, "attribute 'format' is not a single value"),
        ({"format": h5py.Empty("S1")}, "attribute 'format' is not a single value"),
        ({"version": None}, "attribute 'version' is missing"),
        ({"version": "1"}, "attribute 'version' is 1, expected a whole number"),
        ({"version": -1}, "attribute 'version' is -1, expected a whole number"),
        ({"version": 0}, "attribute 'version' is 0, expected a whole number from 1"),
        ({"version": 1.5}, "attribute 'version' is 1.5, expected a whole number"),
        ({"version": np.nan}, "attribute 'version' is nan, expected a whole number"),
        ({"version": 2**61}, "was written by a newer featlens"),
        ({"complete": "yes"}, "attribute 'complete' is yes, expected a whole number"),
        ({"manifest": "{"}, "the manifest is not JSON"),
        ({"manifest": "[1]"}, "the manifest is a JSON list, expected an object"),
        ({"manifest": "7" * 5000}, "the manifest is not JSON"),
        ({"manifest": "[" * 100_000}, "the manifest is not JSON"),
        ({"manifest": '{"a":' * 100_000}, "the manifest is not JSON"),
        ({"sigma": None}, "the dataset '/sigma' is missing"),
        ({"sigma": [0.5, np.nan]}, "'/sigma' holds [0.5, nan], expected different numbers above 0"),
        ({"sigma": [0.5, np.inf]}, "expected different numbers above 0"),
        ({"sigma": [0.5, 0.5]}, "expected different numbers above 0"),
        ({"sigma": [0.5, 0.0]}, "expected different numbers above 0"),
        ({"sigma": [0.5, -1.0]}, "expected different numbers above 0"),
        ({"sigma": [[0.5, 2.0]]}, "'/sigma' has shape (1, 2), expected one axis"),
        ({"sigma": 0.5}, "'/sigma' has shape (), expected one axis"),
        ({"sigma": ["a", "b"]}, "'/sigma' has type object, expected numbers"),
        ({"sample": None}, "the dataset '/sample' is missing"),
        ({"sample": np.arange(N) / 2}, "'/sample' has type float64, expected whole numbers"),
        ({"sample": np.full(N, 2**64 - 1, dtype=np.uint64)}, "'/sample' holds numbers beyond 63 bits"),
        ({"sample": np.zeros(N, dtype=[("x", "i8")])}, "'/sample' has type"),
        (
            {"sample": np.arange(N + 1), "label": None},
            "site 'a' has shape (2, 6, 3), expected (2, 7, features)",
        ),
        ({"label": np.arange(N + 1)}, "'/label' has shape (7,), expected shape (6,)"),
        ({"rows_done": [N, N + 1], "complete": 0}, "does not fit 6 rows that are incomplete"),
        ({"rows_done": [N, -1], "complete": 0}, "does not fit 6 rows that are incomplete"),
        ({"rows_done": [N, N - 1]}, "'/rows_done' holds [6, 5], which does not fit 6 rows that are complete"),
        ({"rows_done": [N]}, "'/rows_done' has shape (1,), expected shape (2,)"),
        ({"rows_done": [N, 0.5]}, "'/rows_done' has type float64, expected whole numbers"),
        ({"rows_done": h5py.Empty("i8")}, "'/rows_done'"),
    ],
)
def test_what_the_file_says_of_itself(path, changes, message):
    build(path, **changes)
    assert message in refused(path)


def test_the_file_that_is_changed_here_is_valid(path):
    build(path)
    with FeatureStore(path) as store:
        assert store.read("a", 2.0).tolist() == [[1.0] * 3] * N


def soft_link(file):
    file["sites/b"] = h5py.SoftLink("/sample")


def dangling_link(file):
    file["sites/b"] = h5py.SoftLink("/nowhere")


def external_link(file):
    file["sites/b"] = h5py.ExternalLink("secret.h5", "/x")


def external_sample(file):
    del file["sample"]
    file["sample"] = h5py.ExternalLink("secret.h5", "/v")


def external_group(file):
    del file["sites"]
    file["sites"] = h5py.ExternalLink("secret.h5", "/")


def linked_group(file):
    file.move("sites", "others")
    file["sites"] = h5py.SoftLink("/others")


def external_storage(file):
    replace_site(file)
    file["sites"].create_dataset("a", (2, N, 3), "f4", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


def external_labels(file):
    del file["label"]
    file.create_dataset("label", (N,), "i8", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


def group_for_vector(file):
    del file["sample"]
    file.create_group("sample")


def dataset_for_group(file):
    del file["sites"]
    file["sites"] = [1]


def virtual_vector(file):
    layout = h5py.VirtualLayout((N,), "i8")
    layout[:] = h5py.VirtualSource("secret.h5", "v", (N,))
    del file["sample"]
    file.create_virtual_dataset("sample", layout)


def strings(file):
    replace_site(file, np.full((2, N, 3), "x", dtype=object))


def references(file):
    values = np.full((2, N, 3), file.ref, dtype=h5py.ref_dtype)
    replace_site(file)
    file.create_dataset("sites/a", data=values, dtype=h5py.ref_dtype)


def compound(file):
    replace_site(file, np.zeros((2, N, 3), dtype=[("x", "f4"), ("y", "f4")]))


def opaque(file):
    replace_site(file, np.zeros((2, N, 3), dtype="V4"))


def whole_numbers(file):
    replace_site(file, np.zeros((2, N, 3), dtype=np.int32))


def complex_numbers(file):
    replace_site(file, np.zeros((2, N, 3), dtype=np.complex64))


def no_features(file):
    replace_site(file, np.zeros((2, N, 0), dtype=np.float32))


def other_shape(file):
    replace_site(file, np.zeros((N, 2, 3), dtype=np.float32))


def bad_order(file):
    file["sites/a"].attrs["order"] = "first"


def bad_reducer(file):
    file["sites/a"].attrs["reducer"] = 3.5


def bad_aliases(file):
    file["sites/a"].attrs["aliases"] = json.dumps({"a": {"order": "x" * 1000}})


def deep_aliases(file):
    file["sites/a"].attrs["aliases"] = "[" * 100_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (soft_link, "site 'b' is a link to another place"),
        (dangling_link, "site 'b' is a link to another place"),
        (external_link, "site 'b' is a link to another place"),
        (external_sample, "'/sample' is a link to another place"),
        (external_group, "'/sites' is a link to another place"),
        (linked_group, "'/sites' is a link to another place"),
        (external_storage, "site 'a' keeps its data in another file"),
        (external_labels, "'/label' keeps its data in another file"),
        (group_for_vector, "'/sample' is no dataset"),
        (dataset_for_group, "the group '/sites' is missing"),
        (virtual_vector, "'/sample' is virtual; expected its data in the file itself"),
        (strings, "site 'a' has type object, expected floating point numbers"),
        (references, "site 'a' has type object, expected floating point numbers"),
        (compound, "site 'a' has type"),
        (opaque, "site 'a' has type |V4, expected floating point numbers"),
        (whole_numbers, "site 'a' has type int32, expected floating point numbers"),
        (complex_numbers, "site 'a' has type complex64, expected floating point numbers"),
        (no_features, "site 'a' has shape (2, 6, 0)"),
        (other_shape, "site 'a' has shape (6, 2, 3), expected (2, 6, features)"),
        (bad_order, "site 'a': attribute 'order' is first, expected a whole number from 0"),
        (bad_reducer, "site 'a': attribute 'reducer' is float64, expected a string"),
        (bad_aliases, "attribute 'aliases' tells nonsense of site 'a'"),
        (deep_aliases, "attribute 'aliases' of site 'a' is not JSON"),
    ],
)
def test_what_the_file_is_made_of(path, secret, monkeypatch, change, message):
    # Next to the file and in the current folder: wherever HDF5 looks, it would find them.
    monkeypatch.chdir(secret)
    build(path)
    with h5py.File(path, "r+") as file:
        change(file)
    assert message in refused(path)


@pytest.mark.parametrize(
    "name",
    [b"..", b"a\x1b[31m\x07b", b"a\nb", b"\xff\xfe", "a\u202eb".encode(), b"x" * 5000],
)
def test_names_of_sites_are_shown_safely(path, name):
    build(path)
    with h5py.File(path, "r+") as file:
        h5py.h5o.link(file["sites/a"].id, file["sites"].id, name)
    line = refused(path)
    assert "site name" in line and "is not allowed: it must not be empty, '.', '..', hold '/'" in line


@pytest.mark.parametrize("name", ["a/b", "/etc/passwd", "../x", "a\x00b"])
def test_a_name_that_is_a_path_inside_the_file_is_refused(path, name):
    """HDF5 itself makes no such names; bytes that somebody changed may."""
    stand_in = "q" * len(name)
    build(path)
    with h5py.File(path, "r+") as file:
        file["sites"][stand_in] = file["sites/a"]
    data = path.read_bytes()
    assert data.count(stand_in.encode()) == 1
    path.write_bytes(data.replace(stand_in.encode(), name.encode()))
    # A NUL ends a name for HDF5, which leaves an ordinary one.
    if "\0" in name:
        with pytest.raises(FeatlensError), FeatureStore(path) as store:
            assert list(store.sites) == ["a"]
            store.read("never", 0.5)
    else:
        assert "is not allowed" in refused(path)


def test_groups_in_circles_and_strangers_are_ignored(path):
    build(path)
    with h5py.File(path, "r+") as file:
        file["sites/loop"] = file["/"]
        file["sites/self"] = file["sites"]
        file["sites/type"] = np.dtype("f8")
        file["sites/flat"] = np.zeros((2, 3))
        file["link"] = h5py.ExternalLink("secret.h5", "/x")
    with FeatureStore(path) as store:
        assert list(store.sites) == ["a"]
        assert store.verify() == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    assert "expected a feature file, found a device or pipe" in refused(path)
    assert "expected a feature file, found a device or pipe" in refused("/dev/zero")
