"""Which rows of a feature file cannot be read as they were written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from featlens.store.open import shown

__all__ = ["Damage", "damaged_rows"]

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Damage:
    """Rows that are damaged.

    Attributes
    ----------
    site
        Name of the site.
    sigma
        Noise level.
    start, stop
        Rows ``start`` to ``stop - 1``: the part of a chunk that was looked at.
    reason
        What is wrong with them, on one line.
    """

    site: str
    sigma: float
    start: int
    stop: int
    reason: str

    def __str__(self) -> str:
        return (
            f"site {self.site!r}, sigma {self.sigma:g}, rows {self.start}..{self.stop} are damaged "
            f"({self.reason})"
        )


def damaged_rows(dataset: Any, index: int, start: int, stop: int) -> list[tuple[int, int, str]]:
    """Parts (first, last + 1, reason) of rows ``start`` to ``stop`` that cannot be read at one sigma."""
    found = []
    step = dataset.chunks[1] if dataset.chunks else max(1, READ_BYTES // (dataset.shape[2] * 8))
    for first in range(start - start % step, stop, step):
        low, high = max(first, start), min(first + step, stop)
        reason = _why(dataset, index, low, high)
        if reason:
            found.append((low, high, reason))
    return found


def _why(dataset: Any, index: int, start: int, stop: int) -> str:
    """What is wrong with rows of one chunk; empty if nothing is."""
    try:
        dataset[index, start:stop]
    except Exception as error:  # What h5py raises on damaged structure is not only OSError.
        told = shown(error, 80)
        return "checksum mismatch" if "filter returned failure" in told else f"unreadable: {told}"
    if dataset.chunks and _is_absent(dataset, index, start):
        return "never written"
    return ""


def _is_absent(dataset: Any, index: int, row: int) -> bool:
    """Whether a chunk has no place in the file; HDF5 reads such as fill values."""
    sigmas, rows, width = dataset.chunks
    places = [(index - index % sigmas, row - row % rows, at) for at in range(0, dataset.shape[2], width)]
    return any(dataset.id.get_chunk_info_by_coord(place).byte_offset is None for place in places)
