"""Disks that are full or read-only, folders that cannot be written, files that go away: one line."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from featlens.errors import FeatlensError, StoreError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from tests.store_helpers import WRITER, checked, expected


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


LIMITED = """
import resource
from featlens.comparison import Comparison
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


def test_a_disk_too_small_for_a_new_file_leaves_the_old_one_as_it_was(path, python, make_store):
    pytest.importorskip("resource")
    make_store(path)
    before = path.read_bytes()
    create = """
limit(100_000)
try:
    FeatureWriter.create(path, [SiteInfo("a", 0, 100)], [0.5], np.arange(5000), {})
except FeatlensError as error:
    print(error)
"""
    result = python(WRITER + LIMITED + create, path)
    assert checked(result) == (
        f"{path}: the file size limit was reached; raise it (ulimit -f) and run the same command again\n"
    )
    assert result.stderr == ""
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["a.h5"]


def test_a_disk_that_fills_up_while_writing_keeps_what_was_done(path, python):
    pytest.importorskip("resource")
    append = """
try:
    with open_writer(path) as writer:
        fill(writer, blocks=3)
        limit(path.stat().st_size // 2)
        fill(writer)
except FeatlensError as error:
    print(error)
"""
    result = python(WRITER + LIMITED + append, path)
    assert checked(result) == (
        f"{path}: the file size limit was reached; raise it (ulimit -f) and run the same command again\n"
    )
    assert result.stderr == ""
    with FeatureStore(path) as store:
        done = store.rows_done.tolist()
        assert done[0] >= 768
        assert not store.complete
        for index, sigma in enumerate((0.5, 2.0)):
            rows = slice(0, done[index])
            assert np.array_equal(
                store.read("dec.conv", sigma, rows), expected("dec.conv", index, done[index])
            )
    checked(python(WRITER + "\nwith open_writer(path) as writer: fill(writer)", path))
    with FeatureStore(path) as store:
        assert np.array_equal(store.read("enc.conv", 2.0), expected("enc.conv", 1, 2000))


def free_space(monkeypatch, size):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": size}))


def test_a_file_that_the_disk_cannot_hold_is_refused_before_it_is_begun(path, monkeypatch):
    free_space(monkeypatch, 4_100_000_000)
    sites = [SiteInfo("a", 0, 3000), SiteInfo("b", 1, 3000, same_as="a")]
    with pytest.raises(
        FeatlensError,
        match=r"a\.h5: needs 12(\.\d)? GB, 4\.1 GB are free; free some space or choose another output",
    ):
        FeatureWriter.create(path, sites, [0.5], np.arange(1_000_000), {})
    assert list(path.parent.iterdir()) == []


def test_the_size_that_is_asked_for_is_that_of_the_file(path, monkeypatch):
    sites = [SiteInfo("a", 0, 100), SiteInfo("b", 1, 30)]
    FeatureWriter.create(path, sites, [0.5, 2.0], np.arange(3000), {}).close()
    size = path.stat().st_size
    free_space(monkeypatch, int(size * 0.97))
    with pytest.raises(FeatlensError, match=r"needs 3\.2\d MB, 3\.1\d MB are free"):
        FeatureWriter.create(path, sites, [0.5, 2.0], np.arange(3000), {})
    free_space(monkeypatch, size)
    FeatureWriter.create(path, sites, [0.5, 2.0], np.arange(3000), {}).close()


@pytest.fixture
def tiny_disk(tmp_path):
    """A folder on a disk of a megabyte, where one may be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(tiny_disk, monkeypatch):
    path, sites = tiny_disk / "a.h5", [SiteInfo("a", 0, 100)]
    with pytest.raises(FeatlensError, match=r"a\.h5: needs 2\.\d\d MB, 1\.\d\d MB are free"):
        FeatureWriter.create(path, sites, [0.5], np.arange(5000), {})
    free_space(monkeypatch, 10**9)
    for _ in range(2):
        with pytest.raises(FeatlensError) as caught:
            FeatureWriter.create(path, sites, [0.5], np.arange(5000), {})
        assert str(caught.value) == (
            f"{path}: the disk is full; free some space and run the same command again"
        )
        assert list(tiny_disk.iterdir()) == []


def test_a_read_only_disk_is_one_line_and_what_lies_there_is_read(tiny_disk):
    path, sites = tiny_disk / "a.h5", [SiteInfo("a", 0, 2)]
    with FeatureWriter.create(path, sites, [0.5], np.arange(600), {}) as writer:
        writer.append(0, {"a": np.ones((256, 2))})
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for attempt in (
        lambda: FeatureWriter.create(path, sites, [0.5], [1], {}),
        lambda: FeatureWriter.create(tiny_disk / "b.h5", sites, [0.5], [1], {}),
        lambda: FeatureWriter.resume(path, {}),
    ):
        with pytest.raises(FeatlensError, match=r"\.h5: the file system is read-only; choose another output"):
            attempt()
    with FeatureStore(path) as store:
        assert store.read("a", 0.5, slice(0, 256)).sum() == 512


def test_on_a_disk_that_others_fill_what_was_laid_down_can_be_finished(tiny_disk):
    path, values = tiny_disk / "a.h5", np.random.default_rng(0).normal(size=(1500, 100)).astype(np.float32)
    with FeatureWriter.create(path, [SiteInfo("a", 0, 100)], [0.5], np.arange(1500), {}) as writer:
        with pytest.raises(OSError, match="No space"):
            (tiny_disk / "other").write_bytes(bytes(1 << 20))
        writer.append(0, {"a": values})
    with FeatureStore(path) as store:
        assert store.complete
        assert np.array_equal(store.read("a", 0.5), values)


def test_an_output_in_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    sites = [SiteInfo("a", 0, 2)]
    (tmp_path / "file").write_text("")
    with pytest.raises(
        FeatlensError, match="a part of the path is a file, not a folder; choose another output"
    ):
        FeatureWriter.create(tmp_path / "file" / "a.h5", sites, [0.5], [1], {})
    with pytest.raises(FeatlensError, match="there is no such file or folder; check the path"):
        FeatureWriter.create(tmp_path / "nowhere" / "a.h5", sites, [0.5], [1], {})
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(FeatlensError, match="permission denied; choose another output"):
        FeatureWriter.create(folder / "a.h5", [SiteInfo("a", 0, 2)], [0.5], [1], {})


@pytest.mark.parametrize("what", ["deleted", "replaced"])
def test_a_file_that_goes_away_while_it_is_written_is_noticed(path, what):
    values = np.ones((600, 2), dtype=np.float32)
    with FeatureWriter.create(path, [SiteInfo("a", 0, 2)], [0.5], np.arange(600), {}) as writer:
        writer.append(0, {"a": values[:256]})
        path.unlink()
        if what == "replaced":
            path.write_text("another")
        with pytest.raises(
            StoreError, match=rf"a\.h5 was {what} while it was being written.*; run the same command again"
        ):
            writer.append(0, {"a": values[256:]})
        assert writer.done(0) == 256
    assert path.exists() == (what == "replaced")


def test_a_writer_follows_its_file_when_the_process_changes_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with FeatureWriter.create("a.h5", [SiteInfo("a", 0, 2)], [0.5], np.arange(6), {}) as writer:
        monkeypatch.chdir("/")
        writer.append(0, {"a": np.ones((6, 2))})
    assert FeatureStore(tmp_path / "a.h5").complete
