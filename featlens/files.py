"""Files that are whole or absent: atomic writes, locks, and operating-system errors said in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from featlens.errors import FeatlensError

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "AppearedError",
    "atomic_path",
    "explain_os_error",
    "human_bytes",
    "lock",
    "lock_file",
    "make_folder",
    "require_space",
    "unlock_file",
    "write_bytes",
    "write_netcdf",
    "write_text",
]

_ADVICE = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EROFS: "the file system is read-only; choose another output with -o",
    errno.EACCES: "permission denied; choose another output with -o or change the permissions",
    errno.EPERM: "not permitted; choose another output with -o or change the permissions",
    errno.EFBIG: "the file size limit was reached; raise it (ulimit -f) and run the same command again",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another output with -o",
    errno.EISDIR: "this is a folder; give the path of a file",
    errno.ENOENT: "there is no such file or folder; check the path",
}


def explain_os_error(error: OSError, path: os.PathLike[str] | str | None = None) -> FeatlensError:
    """One line for an operating-system error: where, what, what to do."""
    where = str(path if path is not None else error.filename or "output")
    number = error.errno
    if number is None:
        # HDF5 and safetensors report the number inside their message.
        found = re.search(r"errno = (\d+)|os error (\d+)", str(error))
        number = int(found[1] or found[2]) if found else None
    advice = _ADVICE.get(number) if number is not None else None
    return FeatlensError(f"{where}: {advice or ' '.join(str(error).split())}")


class AppearedError(FeatlensError):
    """Another process made the file while this one was preparing it."""


@contextlib.contextmanager
def atomic_path(path: os.PathLike[str] | str, new: bool = False, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it replaces ``path`` if the block succeeds, else is removed.

    The temporary file is locked (``flock``) while the block runs; temporary files for the same ``path`` that
    nobody locks are what killed processes left behind, and are removed first. HDF5 has locks of its own:
    open the temporary file with :func:`featlens.store.open.new_hdf5`.

    Parameters
    ----------
    path
        File to make or to replace.
    new
        Never replace a file that appeared since: :class:`AppearedError` then.
    sync
        Bring the data to the disk first, so that a power cut leaves the old file or the new one.
    """
    target = Path(path)
    try:
        _sweep(target)
        temporary, handle = _locked_temporary(target)
    except OSError as error:
        raise explain_os_error(error, target) from error
    try:
        yield temporary
        if sync:
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        _put(temporary, target, new)
    except OSError as error:
        raise explain_os_error(error, target) from error
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _put(temporary: Path, target: Path, new: bool) -> None:
    """Give a file its name; a link, unlike a rename, fails if the name is taken."""
    if new:
        try:
            os.link(temporary, target)
            return
        except FileExistsError:
            raise AppearedError(f"{target} has just been made by another process") from None
        except OSError:
            pass  # A file system without hard links.
    temporary.replace(target)


def _locked_temporary(target: Path) -> tuple[Path, int]:
    """A new temporary file and a descriptor that holds its lock."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        lock_file(handle, wait=True)
        # Between its making and its locking another process may have swept it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), Path(name).stat()):
                return Path(name), handle
        os.close(handle)


def _sweep(target: Path) -> None:
    """Remove temporary files of killed processes; the system freed their locks."""
    # More than one dot and ending: a file that was made, again atomically, in the place of a temporary one.
    pattern = re.compile(rf"\.+{re.escape(target.name)}(\.[a-z0-9_]{{8}}\.tmp)+")
    with os.scandir(target.parent) as entries:
        names = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for name in names:
        with contextlib.suppress(OSError):
            handle = os.open(name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if lock_file(handle):
                    Path(name).unlink()
            finally:
                os.close(handle)


def lock_file(handle: int, shared: bool = False, wait: bool = False) -> bool | None:
    """Lock an open file as HDF5 does: whether it was free; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows has no fcntl
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def unlock_file(handle: int) -> None:
    """Free the lock of an open file, whoever else has the descriptor; closing frees it only with the last."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def require_space(path: os.PathLike[str] | str, needed: int) -> None:
    """Refuse to begin a file of ``needed`` bytes where the disk has fewer left."""
    try:
        free = shutil.disk_usage(Path(path).parent).free
    except OSError:
        return
    if needed > free:
        raise FeatlensError(
            f"{path}: needs {human_bytes(needed)}, {human_bytes(free)} are free; "
            "free some space or choose another output with -o"
        )


def human_bytes(size: float) -> str:
    """Size in decimal units.

    >>> human_bytes(12_345_678)
    '12.3 MB'
    """
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.1f} TB"


def write_bytes(path: os.PathLike[str] | str, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: os.PathLike[str] | str, text: str) -> None:
    """Write UTF-8 ``text`` atomically."""
    write_bytes(path, text.encode())


def write_netcdf(path: os.PathLike[str] | str, data: xr.Dataset) -> None:
    """Write a data set as netCDF-4, atomically; made in memory, because HDF5 crashes where a disk is full."""
    import io

    import h5netcdf  # type: ignore[import-untyped,unused-ignore]
    from xarray.backends import H5NetCDFStore

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        data.dump_to_store(H5NetCDFStore(file))
    write_bytes(path, buffer.getvalue())


def make_folder(path: os.PathLike[str] | str) -> Path:
    """Create a folder with its parents; one clear line if that is impossible."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FeatlensError(
            f"{folder}: expected a folder, found a file; choose another output with -o"
        ) from None
    except OSError as error:
        raise explain_os_error(error, folder) from error
    return folder


@contextlib.contextmanager
def lock(path: os.PathLike[str] | str, what: str) -> Iterator[None]:
    """Hold ``path`` as an advisory lock file; the system frees it when the process ends, however it ends."""
    try:
        handle: IO[str] = Path(path).open("a+", encoding="utf-8")  # noqa: SIM115 - closed by "with handle"
    except OSError as error:
        raise explain_os_error(error, path) from error
    with handle:
        try:
            import fcntl
        except ImportError:  # pragma: no cover - Windows has no fcntl; single-user use there goes unlocked
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FeatlensError(
                f"{what} is in use by another process; wait for it or choose another output"
            ) from None
        yield
