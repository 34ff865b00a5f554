"""Killed writers, full disks and two writers at once: what was complete stays readable and is continued."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from featlens.errors import FeatlensError, StoreError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo

# Writes a file block by block, continuing what is there; every number is a function of its place alone.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from featlens.errors import FeatlensError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo

N, SIGMAS, WIDTHS = 2000, [0.5, 2.0], {"enc.conv": 48, "dec.conv": 7}

def open_writer(path):
    if path.exists():
        return FeatureWriter.resume(path, {"model": "m"})
    sites = [SiteInfo(name, order, width) for order, (name, width) in enumerate(WIDTHS.items())]
    return FeatureWriter.create(path, sites, SIGMAS, np.arange(N), {"model": "m"})

def block(index, start, stop):
    rows = np.arange(start, stop, dtype=np.float32)[:, None]
    return {name: rows * 1000 + np.arange(width, dtype=np.float32) + index for name, width in WIDTHS.items()}

def fill(writer, blocks=10**9):
    for index in range(len(SIGMAS)):
        while writer.done(index) < N and blocks > 0:
            start = writer.done(index)
            writer.append(index, block(index, start, min(start + writer.block, N)))
            blocks -= 1

path = Path(sys.argv[1])
"""

KILLS = (
    WRITER
    + """
import json, os, random, signal, time
begun = time.perf_counter()
with open_writer(path) as writer:
    fill(writer)
whole, seconds = path.read_bytes(), time.perf_counter() - begun
draws, cut, kills, midway = random.Random(int(sys.argv[2])), path.with_name("cut.h5"), 0, 0
while midway < int(sys.argv[3]) and kills < 400:
    kills += 1
    if cut.exists() and FeatureStore(cut).complete:
        cut.unlink()
    child = os.fork()
    if child == 0:
        with open_writer(cut) as writer:
            fill(writer)
        os._exit(0)
    time.sleep(draws.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if cut.exists():
        with FeatureStore(cut) as store:
            done = store.rows_done.tolist()
            midway += 0 < sum(done) < N * len(SIGMAS)
            for index, sigma in enumerate(SIGMAS):
                for site, expected in block(index, 0, done[index]).items():
                    assert np.array_equal(store.read(site, sigma, slice(0, done[index])), expected)
with open_writer(cut) as writer:
    fill(writer)
print(json.dumps({"same": cut.read_bytes() == whole, "midway": midway}))
"""
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


def checked(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def expected(site, index, rows):
    width = {"enc.conv": 48, "dec.conv": 7}[site]
    return np.arange(rows)[:, None] * 1000 + np.arange(width) + index


def test_a_writer_that_dies_without_closing_leaves_a_file_that_resumes(path, python):
    die = "import os; writer = open_writer(path); writer.append(0, block(0, 0, 768)); os._exit(9)"
    result = python(WRITER + die, path)
    assert result.returncode == 9, result.stderr
    with FeatureStore(path) as store:
        assert not store.complete
        assert store.rows_done.tolist() == [768, 0]
        assert np.array_equal(store.read("enc.conv", 0.5, slice(0, 768)), expected("enc.conv", 0, 768))
    checked(python(WRITER + "\nwith open_writer(path) as writer: fill(writer)", path))
    with FeatureStore(path) as store:
        assert store.complete
        for index, sigma in enumerate((0.5, 2.0)):
            for site in ("enc.conv", "dec.conv"):
                assert np.array_equal(store.read(site, sigma), expected(site, index, 2000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_resumed_the_file_has_the_bytes_of_an_uninterrupted_one(path, python):
    told = json.loads(checked(python(KILLS, path, 7, 5)))
    assert told["midway"] == 5, "the kills came too early or too late to show anything"
    assert told["same"]


def test_a_complete_file_whose_writer_died_before_closing_becomes_complete_on_resume(path, python):
    python(WRITER + "import os; fill(open_writer(path)); os._exit(9)", path)
    with FeatureStore(path) as store:
        assert store.rows_done.tolist() == [2000, 2000]
        assert not store.complete
    FeatureWriter.resume(path, {"model": "m"}).close()
    with FeatureStore(path) as store:
        assert store.complete


@pytest.mark.parametrize(("rows", "start"), [(600, 0), (600, 512), (100, 0)])
def test_a_chunk_that_a_kill_tore_is_replaced_in_place(path, tmp_path, rows, start):
    values = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    for target in (path, tmp_path / "whole.h5"):
        with FeatureWriter.create(target, [SiteInfo("a", 0, 3)], [0.5], np.arange(rows), {}) as writer:
            if start:
                writer.append(0, {"a": values[:start]})
            if target != path:
                writer.append(0, {"a": values[start:]})
    with h5py.File(path) as file:
        chunk = file["sites/a"].id.get_chunk_info_by_coord((0, start, 0))
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(values[start : start + 5].tobytes())
    with FeatureWriter.resume(path, {}) as writer:
        writer.append(0, {"a": values[start:]})
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


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
        match=r"a\.h5: needs 12\.\d GB, 4\.1 GB are free; free some space or choose another output",
    ):
        FeatureWriter.create(path, sites, [0.5], np.arange(1_000_000), {})
    assert list(path.parent.iterdir()) == []


def test_the_size_that_is_asked_for_is_that_of_the_file(path, monkeypatch):
    sites = [SiteInfo("a", 0, 100), SiteInfo("b", 1, 30)]
    FeatureWriter.create(path, sites, [0.5, 2.0], np.arange(3000), {}).close()
    size = path.stat().st_size
    free_space(monkeypatch, int(size * 0.97))
    with pytest.raises(FeatlensError, match=r"needs 3\.2 MB, 3\.1 MB are free"):
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
    with pytest.raises(FeatlensError, match=r"a\.h5: needs 2\.1 MB, 1\.0 MB are free"):
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_it_lays_down_leaves_nothing_for_ever(path, python):
    kill = """
import os, signal
from featlens.store import lay_down
class Killer:
    def __init__(self): self.left = int(sys.argv[2])
    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
real, lay_down._lay_down_site = lay_down._lay_down_site, Killer()
open_writer(path)
"""
    for sites_done in (0, 1):
        assert python(WRITER + kill, path, sites_done).returncode == -9
        (left,) = path.parent.iterdir()
        assert left.name.startswith(".a.h5.") and left.name.endswith(".tmp")
    (path.parent / ".a.h5.other").write_text("not ours")
    (path.parent / ".b.h5.12345678.tmp").write_text("of another file")
    checked(python(WRITER + "open_writer(path).close()", path))
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        ".a.h5.other",
        ".b.h5.12345678.tmp",
        "a.h5",
    ]


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


def test_completing_a_file_changes_it_in_one_stroke(path, monkeypatch):
    sites = [SiteInfo("a", 0, 2)]
    with FeatureWriter.create(path, sites, [0.5], [1], {}) as writer:
        writer.append(0, {"a": np.ones((1, 2))})
        before, strokes = path.read_bytes(), []
        real = os.write
        monkeypatch.setattr(
            os, "write", lambda handle, data: strokes.append(bytes(data)) or real(handle, data)
        )
    after = path.read_bytes()
    changed = [place for place in range(len(before)) if before[place] != after[place]]
    (stroke,) = strokes
    assert after[min(changed) : max(changed) + 1] == stroke
    assert len(before) == len(after) and len(stroke) < 4096
    with h5py.File(path) as file:
        assert file.attrs["complete"] == 1


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


def test_a_file_that_another_tool_left_inside_a_block_goes_on_with_that_block(path):
    rows = np.arange(600 * 4, dtype=np.float32).reshape(600, 4)
    with FeatureWriter.create(path, [SiteInfo("a", 0, 4)], [0.5, 1.0], range(600), {}) as writer:
        writer.append(0, {"a": rows[:512]})
    with h5py.File(path, "r+") as file:
        file["rows_done"][0] = 300
    with FeatureWriter.resume(path, {}) as writer:
        assert writer.done(0) == 256
        # A kill from here on tears a block that no longer counts.
        with h5py.File(path, locking=False) as file:
            assert file["rows_done"][:].tolist() == [256, 0]
        writer.append(0, {"a": rows[256:]})
        writer.append(1, {"a": rows})
    with FeatureStore(path) as store:
        assert store.complete
        assert np.array_equal(store.read("a", 0.5), rows)


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


@pytest.mark.parametrize("size", [10, 5000, 30_000])
def test_completing_a_file_writes_few_bytes_however_long_the_manifest_is(path, monkeypatch, size):
    from featlens.store import draft

    writer = FeatureWriter.create(path, [SiteInfo("a", 0, 1)], [1.0], [0], {"model": "m" * size})
    writer.append(0, {"a": np.ones((1, 1))})
    written, write = [], os.write

    def counted(handle, data):
        written.append(len(data))
        return write(handle, data)

    monkeypatch.setattr(draft.os, "write", counted)
    writer.close()
    monkeypatch.undo()
    assert len(written) == 1
    assert written[0] < 200
    with FeatureStore(path) as store:
        assert store.complete
