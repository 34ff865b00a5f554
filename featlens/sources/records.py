"""Fixed-size records of files, read with plain reads; handles survive pickling, fork and threads.

Nothing is mapped into memory: mapped pages count as memory of the process, which would seem to grow with the
size of the file.
"""

from __future__ import annotations

import contextlib
import gzip
import itertools
import math
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError
from featlens.files import explain_os_error

__all__ = ["Handle", "Records", "Stream", "open_gzip", "open_zip", "reading", "runs"]


class Closable(Protocol):
    """Anything with ``close``."""

    def close(self) -> object:
        """Give the file back."""


T = TypeVar("T", bound=Closable)


class Handle(Generic[T]):
    """A file that is opened when first used, once a process, and used by one thread at a time.

    The file is the first path among the arguments of ``opener``, where that is a partial function. One that
    has changed since is an error: what is read later has to be what the digest was made of.
    """

    def __init__(self, opener: Callable[[], T]) -> None:
        self._opener = opener
        self._path = next((part for part in getattr(opener, "args", ()) if isinstance(part, Path)), None)
        self._stamp = _stamp(self._path)
        self._reset()

    def _reset(self) -> None:
        self._file: T | None = None
        self._lock = threading.Lock()
        self._process = os.getpid()

    @contextlib.contextmanager
    def use(self) -> Iterator[T]:
        """The open file, for the length of the block."""
        if self._process != os.getpid():
            # After a fork both processes would move the same file position, and the lock may be held by
            # a thread that does not exist here.
            self._reset()
        if _stamp(self._path) != self._stamp:
            raise FeatlensError(f"{self._path} has changed since its images were loaded; load them again")
        with self._lock:
            file = self._opener() if self._file is None else self._file
            self._file = file
            try:
                yield file
            except BaseException:
                # After a failure the position means nothing, and a member of a zip stays spoilt.
                self._file = None
                file.close()
                raise

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._file is not None and self._process == os.getpid():
            with self._lock:
                file, self._file = self._file, None
                if file is not None:
                    file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_opener": self._opener, "_path": self._path, "_stamp": self._stamp}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What changes with a file's contents; None if it is not there, which opening it will say."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    if found is None:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what goes wrong while reading ``where`` into one line."""
    try:
        yield
    except (EOFError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile) as error:
        raise FeatlensError(f"{where}: damaged or cut off ({error}); copy or download it again") from error
    except OSError as error:
        raise explain_os_error(error, where) from error


def _open_plain(path: Path) -> Any:
    """The file, unbuffered: what is read is what is asked for."""
    return path.open("rb", buffering=0)


def open_gzip(path: Path) -> Any:
    """The decompressed contents of a gzip file."""
    return gzip.open(path)


def open_zip(path: Path, member: str) -> Any:
    """The decompressed contents of one member of a zip file."""
    with zipfile.ZipFile(path) as archive:
        return archive.open(member)


class Stream:
    """Bytes at given places of a file; compressed ones are fastest if read forwards.

    Parameters
    ----------
    opener
        Function that opens the file; it must survive pickling.
    where
        Name of the file in messages.
    summed
        Whether a checksum follows the last record, which is then read on to.
    """

    def __init__(self, opener: Callable[[], Any], where: str, summed: bool = False) -> None:
        self.where, self.summed = where, summed
        self._handle: Handle[Any] = Handle(opener)

    @classmethod
    def plain(cls, path: Path) -> Stream:
        """Bytes of a file as they are."""
        return cls(partial(_open_plain, path), str(path))

    def read_into(self, offset: int, target: NDArray[np.uint8]) -> int:
        """Fill ``target`` (1-D) with the bytes from ``offset`` on; number of bytes that were there."""
        view, filled = memoryview(target.data), 0
        with reading(self.where), self._handle.use() as file, contextlib.suppress(EOFError):
            # Seeking switches the checksum of zip members off, even where it does not move.
            if file.tell() != offset:
                file.seek(offset)
            while filled < len(view):
                count = file.readinto(view[filled : filled + 2**24])
                if not count:
                    break
                filled += count
        return filled

    def finish(self) -> None:
        """Read what is left: zip and gzip compare their checksum at the very end."""
        with reading(self.where), self._handle.use() as file:
            while file.read(2**20):
                pass

    def close(self) -> None:
        """Close the file until it is needed again."""
        self._handle.close()


def runs(ids: NDArray[np.int64], chunk: int = 1) -> Iterator[slice]:
    """Slices of ascending ``ids`` to be read at once: neighbours, and what shares a chunk.

    >>> [(run.start, run.stop) for run in runs(np.array([2, 3, 7, 9]))]
    [(0, 2), (2, 3), (3, 4)]
    >>> [(run.start, run.stop) for run in runs(np.array([2, 3, 7, 9]), chunk=5)]
    [(0, 2), (2, 4)]
    """
    apart = (np.diff(ids) > 1) & (np.diff(ids // chunk) != 0)
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(ids)]
    for start, stop in itertools.pairwise(edges):
        if stop > start:
            yield slice(start, stop)


class Records:
    """Equal records, one after the other, in a stream.

    Parameters
    ----------
    stream
        The bytes.
    offset
        Where the first record starts.
    count
        Number of records.
    shape, dtype
        Of one record.
    """

    def __init__(
        self, stream: Stream, offset: int, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.stream, self.offset, self.count = stream, offset, count
        self.shape, self.dtype = shape, dtype
        self._bytes = math.prod(shape) * dtype.itemsize

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Records of the given numbers, (len(ids), *shape), in the order of ``ids``."""
        wanted, back = np.unique(ids, return_inverse=True)
        raw = np.empty((len(wanted), self._bytes), dtype=np.uint8)
        for run in runs(wanted):
            start = self.offset + int(wanted[run.start]) * self._bytes
            target = raw[run].reshape(-1)
            count = self.stream.read_into(start, target)
            if count < len(target):
                raise FeatlensError(
                    f"{self.stream.where}: expected {start + len(target)} bytes or more, found "
                    f"{start + count}; it is cut off, copy or download it again"
                )
        if self.stream.summed and len(wanted) and wanted[-1] == self.count - 1:
            self.stream.finish()
        found = raw.view(self.dtype).reshape(len(wanted), *self.shape)
        return found if np.array_equal(wanted, ids) else found[back]

    def close(self) -> None:
        """Close the file until it is needed again."""
        self.stream.close()
