"""Atomic writes, locks, and operating-system errors said in one line."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from featlens.errors import FeatlensError
from featlens.files import atomic_path, explain_os_error, lock, make_folder, write_bytes, write_text


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
