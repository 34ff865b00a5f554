"""Atomic writes, locks, and operating-system errors said in one line."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from featlens.errors import FeatlensError
from featlens.files import (
    AppearedError,
    atomic_path,
    explain_os_error,
    lock,
    make_folder,
    require_space,
    write_bytes,
    write_text,
)


def test_a_written_file_is_whole_and_alone(tmp_path):
    write_text(tmp_path / "a.txt", "sigma \u03c3\n")
    write_bytes(tmp_path / "b.bin", b"\x00\x01")
    assert (tmp_path / "a.txt").read_bytes() == "sigma \u03c3\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\x01"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failed_write_leaves_the_old_file_and_no_debris(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    expected = FeatlensError if error is OSError else error
    with pytest.raises(expected), atomic_path(target) as temporary:
        temporary.write_text("half")
        assert target.read_text() == "old"
        raise error
    assert target.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    plain, ours = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours"))
    assert oct(ours) == oct(plain)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/a.txt", "there is no such file or folder; check the path"),
        ("file/a.txt", "a part of the path is a file, not a folder; choose another output with -o"),
        ("folder", "this is a folder; give the path of a file"),
    ],
)
def test_an_impossible_output_is_one_line_that_names_it(tmp_path, path, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(FeatlensError) as caught:
        write_text(tmp_path / path, "x")
    assert str(caught.value) == f"{tmp_path / path}: {message}"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EROFS, "the file system is read-only; choose another output"),
        (errno.EACCES, "permission denied; choose another output"),
        (errno.EFBIG, "the file size limit was reached"),
    ],
)
def test_advice_follows_the_error_number_also_inside_the_text_of_hdf5(number, advice):
    hdf5 = f"Can't write data (file write failed: time = now\n, errno = {number}, error message = 'no')"
    for error in (OSError(number, os.strerror(number)), OSError(hdf5)):
        told = explain_os_error(error, "out.h5")
        assert isinstance(told, FeatlensError)
        assert str(told).startswith(f"out.h5: {advice}")


def test_an_error_without_advice_keeps_its_text_on_one_line():
    assert str(explain_os_error(OSError("strange\n  thing"), "a")) == "a: strange thing"
    assert str(explain_os_error(OSError(errno.EIO, "Input/output error", "b"))).startswith("b: ")


def test_folders_are_made_with_their_parents(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatlensError, match="file: expected a folder, found a file; choose another output"):
        make_folder(tmp_path / "file")
    with pytest.raises(FeatlensError, match="a part of the path is a file"):
        make_folder(tmp_path / "file" / "below")


def test_a_lock_is_held_by_one_and_freed_at_the_end(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "run.lock"
    again = pytest.raises(FeatlensError, match="runs/digits is in use by another process; wait for it")
    with lock(path, "runs/digits"), again, lock(path, "runs/digits"):
        pass
    with pytest.raises(KeyError), lock(path, "runs/digits"):
        raise KeyError
    with lock(path, "runs/digits"):
        pass


def test_a_lock_of_a_killed_process_is_free(tmp_path, python):
    pytest.importorskip("fcntl")
    path = tmp_path / "run.lock"
    code = (
        "import os, signal, sys; from featlens.files import lock\n"
        "with lock(sys.argv[1], 'x'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert python(code, path).returncode == -9
    with lock(path, "x"):
        pass


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
    refused = pytest.raises(FeatlensError, match="there is no such file or folder")
    with refused, lock(tmp_path / "nowhere" / "run.lock", "x"):
        pass


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path, python):
    pytest.importorskip("fcntl")
    code = (
        "import os, signal, sys; from featlens.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path: path.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    target = tmp_path / "a.txt"
    assert python(code, target).returncode == -9
    assert len(names(tmp_path)) == 1
    others = [
        ".b.txt.abcd1234.tmp",
        ".a.txt.tmp",
        ".a.txt.abcd1234",
        "xa.txt.abcd1234.tmp",
        ".a.txt.ABCD.tmp",
    ]
    for name in others:
        (tmp_path / name).write_text("not ours")
    with atomic_path(target) as live:
        assert names(tmp_path) == sorted([live.name, *others])
        live.write_text("first")
        write_text(target, "second")
        assert live.read_text() == "first"
    assert target.read_text() == "first"
    assert names(tmp_path) == sorted(["a.txt", *others])


def test_a_temporary_file_in_the_place_of_a_temporary_file_is_removed_too(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "..a.txt.abcd1234.tmp.efgh5678.tmp").write_text("of a merge that was killed")
    write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


def test_a_link_in_the_place_of_a_temporary_file_is_left_alone(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / ".a.txt.abcd1234.tmp").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "precious").read_text() == "x"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "a.txt"
    refused = pytest.raises(AppearedError, match=r"a\.txt has just been made by another process")
    with refused, atomic_path(target, new=True) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    target.unlink()
    with atomic_path(target, new=True) as temporary:
        temporary.write_text("ours")
    assert target.read_text() == "ours"
    assert names(tmp_path) == ["a.txt"]


def test_where_links_are_impossible_a_new_file_is_renamed(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with atomic_path(tmp_path / "a.txt", new=True) as temporary:
        temporary.write_text("ours")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (12_345_678_901, "needs 12.3 GB, 4.1 GB are free"),
        (4_100_000_001, "needs 4.1 GB, 4.1 GB are free"),
        (9 * 10**15, "needs 9000.0 TB, 4.1 GB are free"),
    ],
)
def test_space_that_is_not_there_is_told(monkeypatch, size, told):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 4_100_000_000}))
    with pytest.raises(FeatlensError) as caught:
        require_space("runs/a.h5", size)
    assert str(caught.value) == f"runs/a.h5: {told}; free some space or choose another output with -o"
    require_space("runs/a.h5", 4_100_000_000)


def test_space_is_not_asked_for_where_the_system_does_not_tell(tmp_path):
    require_space(tmp_path / "nowhere" / "a.h5", 10**18)
