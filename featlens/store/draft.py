"""Changing an attribute of an HDF5 file in one stroke, so that no kill can come between."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np

__all__ = ["mark_complete"]


class _Draft(io.FileIO):
    """A view of a file that keeps in memory what is written, for HDF5 to show what it would change."""

    def __init__(self, handle: int) -> None:
        super().__init__(handle, "r", closefd=False)
        self.written: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        place = self.tell()
        self.written.append((place, bytes(data)))
        self.seek(place + len(data))
        return len(data)

    def readinto(self, buffer: Any) -> int:
        place, view = self.tell(), memoryview(buffer).cast("B")
        count = super().readinto(view)
        for start, data in self.written:
            low, high = max(start, place), min(start + len(data), place + count)
            if low < high:
                view[low - place : high - place] = data[low - start : high - start]
        return count

    def truncate(self, size: int | None = None) -> int:
        return size or 0


def mark_complete(handle: int) -> None:
    """Set the attribute ``complete`` of an open feature file to 1.

    HDF5 itself would mark the file as open, change it, and take the mark away again: a kill in between leaves
    a file that HDF5 refuses to open. What differs in the end is a few bytes of one object header, number and
    checksum, which are written at once.
    """
    import h5py

    with _Draft(handle) as draft:
        with h5py.File(draft, "r+") as file:
            file.attrs.modify("complete", np.int64(1))
        changed = [
            place for start, data in draft.written for place in _differing(handle, draft, start, len(data))
        ]
        if not changed:
            return
        start, size = min(changed), max(changed) + 1 - min(changed)
        draft.seek(start)
        final = bytearray(size)
        draft.readinto(final)
    os.lseek(handle, start, os.SEEK_SET)
    if os.write(handle, final) != size:
        raise OSError(f"could write only a part of {size} bytes")


def _differing(handle: int, draft: _Draft, start: int, size: int) -> list[int]:
    """Places at which the draft differs from the file."""
    os.lseek(handle, start, os.SEEK_SET)
    before, after = os.read(handle, size), bytearray(size)
    draft.seek(start)
    draft.readinto(after)
    return [start + place for place in range(len(before)) if before[place] != after[place]]
