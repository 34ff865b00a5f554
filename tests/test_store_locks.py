"""Two at one file: a second writer is refused and harms nothing, in this process and in another."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from featlens.errors import StoreError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from tests.store_helpers import WRITER, checked, create


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


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


def test_a_second_writer_in_another_process_is_refused_and_harms_nothing(path, python):
    again = """
for attempt in (lambda: FeatureWriter.resume(path, {"model": "m"}),
                lambda: FeatureWriter.create(path, [SiteInfo("a", 0, 2)], [0.5], [1], {}),
                lambda: FeatureStore(path)):
    try:
        attempt()
        print("not refused")
    except FeatlensError as error:
        print(error)
"""
    values = np.ones((9, 2), dtype=np.float32)
    with FeatureWriter.create(path, [SiteInfo("a", 0, 2)], [0.5], np.arange(9), {"model": "m"}) as writer:
        lines = checked(python(WRITER + again, path)).splitlines()
        writer.append(0, {"a": values})
    assert lines == [f"{path} is being written in another process; wait for it to finish"] * 3
    with FeatureStore(path) as store:
        assert np.array_equal(store.read("a", 0.5), values)


TWO = """
from featlens.store import writer as module
real = module.lay_down
def slow(*args):
    laid = real(*args)
    print("laid", flush=True)
    sys.stdin.readline()
    return laid
module.lay_down = slow
try:
    writer = open_writer(path)
    print("begun", flush=True)
    sys.stdin.readline()
    writer.close()
except FeatlensError as error:
    print(error, flush=True)
"""


def test_of_two_processes_that_find_no_file_one_makes_it(path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", WRITER + TWO, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(command, **pipes) as one, subprocess.Popen(command, **pipes) as two:
        assert one.stdout.readline() == two.stdout.readline() == "laid\n"
        one.stdin.write("\n")
        one.stdin.flush()
        assert one.stdout.readline() == "begun\n"
        two.stdin.write("\n")
        two.stdin.flush()
        assert two.stdout.readline() == (
            f"{path} has just been begun by another process; wait for it to finish or choose another output "
            "with -o\n"
        )
        one.stdin.write("\n")
        one.stdin.flush()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.h5"]
    FeatureStore(path).close()


def test_without_locks_of_hdf5_a_second_writer_is_refused_all_the_same(path, python, monkeypatch):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    again = """
for attempt in (lambda: FeatureWriter.resume(path, {"model": "m"}),
                lambda: FeatureWriter.create(path, [SiteInfo("a", 0, 2)], [0.5], [1], {})):
    try:
        attempt()
        print("not refused")
    except FeatlensError as error:
        print(error)
print(FeatureStore(path).rows_done.tolist())
"""
    values = np.ones((600, 2), dtype=np.float32)
    with FeatureWriter.create(path, [SiteInfo("a", 0, 2)], [0.5], np.arange(600), {"model": "m"}) as writer:
        writer.append(0, {"a": values[:256]})
        lines = checked(python(WRITER + again, path)).splitlines()
        writer.append(0, {"a": values[256:]})
    assert lines == [
        f"{path} is open in another process; wait for it to finish",
        f"{path} is being written in another process; wait for it to finish",
        "[256]",
    ]
    with FeatureStore(path) as store:
        assert np.array_equal(store.read("a", 0.5), values)


def test_locks_are_taken_by_force_too(path, monkeypatch):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    with FeatureWriter.create(path, [SiteInfo("a", 0, 2)], [0.5], [1], {}) as writer:
        writer.append(0, {"a": np.ones((1, 2))})
    assert FeatureStore(path).complete


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_keep_a_closed_file_locked(path, python):
    run = python(
        """
import os, sys
import numpy as np
from featlens.store import FeatureStore, FeatureWriter, SiteInfo

writer = FeatureWriter.create(sys.argv[1], [SiteInfo("a", 0, 1)], [1.0], [0], {})
writer.append(0, {"a": np.ones((1, 1))})
ours, theirs = os.pipe()
child = os.fork()
if not child:
    os.close(theirs)
    os.read(ours, 1)  # Ends with the parent.
    os._exit(0)
writer.close()
assert FeatureStore(sys.argv[1]).complete
os.close(theirs)
os.waitpid(child, 0)
""",
        path,
    )
    assert run.returncode == 0, run.stderr
