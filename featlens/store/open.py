"""Opening HDF5 files: whole or not, in use or not, each said in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featlens.errors import FeatlensError, StoreError
from featlens.files import explain_os_error, lock_file
from featlens.store.patient import PatientFile

__all__ = ["FileInUse", "is_being_written", "lock_for_writing", "new_hdf5", "open_hdf5", "shown"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"

Identity = tuple[int, int]
"""Device and inode: what a file is, whatever its name."""

readers: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Open stores of this process by ``id``; each has an ``identity``. A lock does not tell who holds it."""
writers: weakref.WeakValueDictionary[Identity, Any] = weakref.WeakValueDictionary()
"""Open writers of this process."""


class FileInUse(StoreError):
    """The file is open elsewhere in a way that forbids what is asked."""


def shown(text: object, most: int = 120) -> str:
    """Text from a file, safe on a terminal: on one line, escaped, and cut."""
    line = " ".join(str(text).split())
    safe = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[: most + 1])
    return safe if len(line) <= most else f"{safe[:most]}..."


def identity_of(found: os.stat_result) -> Identity:
    """Device and inode of a file."""
    return found.st_dev, found.st_ino


def open_hdf5(path: Path, mode: str = "r") -> Any:
    """Open an HDF5 file; a :class:`StoreError` says what is wrong with it.

    Chunks are not cached by HDF5: block after block, that costs a fifth of the time.
    """
    import h5py

    open_file = h5py.File  # Outside: a module that hides h5py is no damage.
    try:
        _require_signature(path)
        if identity_of(path.stat()) in writers:
            raise FileInUse(f"{path} is being written in this process; close that writer first")
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        try:
            return open_file(path, mode, rdcc_nbytes=0)
        except OSError as error:
            if not _locks_are_missing(error):
                raise
            return open_file(path, mode, rdcc_nbytes=0, locking=False)
    except OSError as error:
        raise _why(error, path, mode) from None
    except Exception as error:  # What HDF5 raises on damaged structure is not only OSError.
        raise StoreError(
            f"{path} is damaged and cannot be opened ({shown(error)}); copy or extract it again"
        ) from None


def _require_signature(path: Path) -> None:
    # A pipe would wait for ever.
    if not (stat.S_ISREG(path.stat().st_mode) or path.is_dir()):
        raise StoreError(f"{path}: expected a feature file, found a device or pipe")
    with path.open("rb") as file:
        head = file.read(len(SIGNATURE))
    if not head:
        raise StoreError(f"{path}: expected a feature file, found an empty file; extract it again")
    if head != SIGNATURE:
        raise StoreError(
            f"{path}: expected a feature file (HDF5), found something else; make one with 'featlens extract'"
        )


def _locks_are_missing(error: OSError) -> bool:
    """Whether the file system has no locks, as some network file systems."""
    found = re.search(r"unable to lock file, errno = (\d+)", str(error))
    return found is not None and int(found[1]) not in (errno.EAGAIN, errno.EWOULDBLOCK)


def _why(error: OSError, path: Path, mode: str) -> FeatlensError:
    text = " ".join(str(error).split())
    if isinstance(error, BlockingIOError) or "unable to lock" in text or "already open for write" in text:
        use = "being written" if mode == "r" else "open"
        return FileInUse(f"{path} is {use} in another process; wait for it to finish")
    if "already open" in text:
        return FileInUse(f"{path} is open for reading in this process; close that store first")
    if "truncated" in text:
        return StoreError(f"{path} is truncated (cut off while it was copied?); copy or extract it again")
    if error.errno in (errno.EACCES, errno.EROFS):
        return explain_os_error(error, path)
    return StoreError(f"{path} is damaged and cannot be opened ({shown(text)}); copy or extract it again")


def lock_for_writing(path: Path) -> int:
    """Descriptor of a file that nobody else reads or writes; the lock is the one that HDF5 looks at.

    Taken whatever HDF5_USE_FILE_LOCKING says: a second writer would spoil the file.
    """
    try:
        found = identity_of(path.stat())
        if found in writers:
            raise FileInUse(f"{path} is being written in this process; close that writer first")
        handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise explain_os_error(error, path) from error
    if lock_file(handle) is not False and identity_of(os.fstat(handle)) == found:
        return handle
    os.close(handle)
    if any(store.identity == found for store in readers.values()):
        raise FileInUse(f"{path} is open for reading in this process; close that store first")
    raise FileInUse(f"{path} is open in another process; wait for it to finish")


def is_being_written(path: Path) -> bool:
    """Whether a writer elsewhere holds the file; an empty file is nobody's feature file.

    Raises
    ------
    FileInUse
        If the writer is one of this process.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if identity_of(found) in writers:
                raise FileInUse(f"{path} is being written in this process; close that writer first")
            return found.st_size > 0 and lock_file(file.fileno(), shared=True) is False
    except OSError:
        return False


@contextlib.contextmanager
def new_hdf5(
    path: os.PathLike[str] | str | int, mode: str = "w", fillings: Sequence[bytes] = ()
) -> Iterator[Any]:
    """An HDF5 file to fill, safe on a full disk and indifferent to locks; OSError at the end of the block.

    Parameters
    ----------
    path
        An existing file, such as that of :func:`featlens.files.atomic_path`, or an open descriptor, which
        stays open.
    mode
        ``"w"``, ``"r+"`` or ``"r"``.
    fillings
        Stored chunks that are written many at a time.
    """
    import h5py

    with PatientFile(path, not isinstance(path, int), fillings) as patient:
        try:
            # From HDF5 1.10 on all structure has checksums of its own, so that damage there is found, too.
            bounds = ("v110", "latest") if mode == "w" else None
            with h5py.File(patient, mode, libver=bounds) as file:
                yield file
        except Exception as error:
            raise (patient.failure or error) from None
        patient.flush()
        if patient.failure is not None:
            raise patient.failure
