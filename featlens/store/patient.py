"""A file for HDF5 to write to that never fails, because HDF5 crashes on a full disk."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

__all__ = ["PatientFile"]

MOST_WAITING = 512
"""Pieces that one call writes; systems take 1024."""
ENDS = 64
"""Bytes at either end of a piece that are compared."""


class PatientFile(io.FileIO):
    """A file that takes every write and keeps the first failure, on which HDF5 would crash at exit.

    What HDF5 fills new datasets with it writes chunk by chunk. ``fillings`` are stored chunks that are put
    off instead and written many at a time, which takes half as long.
    """

    def __init__(self, path: Any, closefd: bool = True, fillings: Sequence[bytes] = ()) -> None:
        super().__init__(path, "r+", closefd=closefd)
        self.failure: OSError | None = None
        self._fillings = {len(filling): filling for filling in fillings}
        self._waiting: list[bytes] = []
        self._start = self._end = 0

    def write(self, data: Any) -> int:
        """Write all of ``data``, or keep the failure."""
        filling = self._fillings.get(len(data))
        # Both ends tell: no structure of HDF5 begins like numbers that are NaN and ends on their checksum.
        if filling is None or bytes(data[:ENDS]) != filling[:ENDS] or bytes(data[-ENDS:]) != filling[-ENDS:]:
            self._write_waiting()
            return self._write_all(data)
        place = self.tell()
        if place != self._end or len(self._waiting) >= MOST_WAITING:
            self._write_waiting()
        if not self._waiting:
            self._start = place
        self._waiting.append(filling)
        self._end = self.seek(place + len(filling))
        return len(filling)

    def _write_waiting(self) -> None:
        if not self._waiting:
            return
        place, waiting = self.tell(), self._waiting
        self._waiting = []
        self.seek(self._start)
        try:
            written = os.writev(self.fileno(), waiting) if hasattr(os, "writev") else 0
            if written < sum(map(len, waiting)):
                self._write_all(b"".join(waiting)[written:])
        except OSError as error:
            self.failure = self.failure or error
        self.seek(place)

    def _write_all(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.failure is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failure = error
        return size

    def readinto(self, buffer: Any) -> int:
        """Read what is there, also what waits to be written."""
        self._write_waiting()
        return super().readinto(buffer)

    def flush(self) -> None:
        """Write what waits."""
        if not self.closed:
            self._write_waiting()

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or keep the failure."""
        self._write_waiting()
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0
