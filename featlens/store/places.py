"""Where in a feature file the raw data of each chunk lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Places", "SitePlaces", "find_places"]


@dataclass(frozen=True)
class SitePlaces:
    """Width D of a site, and (S, chunks along the samples) int64 positions of its chunks in the file."""

    width: int
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Places:
    """Positions of all that changes while rows are appended; ``rows_done`` is that of the counters."""

    sites: dict[str, SitePlaces]
    rows_done: int
    sigmas: int
    rows: int
    block: int
    dtype: np.dtype[Any]


def find_places(file: Any, datasets: dict[str, Any]) -> Places | None:
    """Positions in an open HDF5 file; None if it was not laid out so that rows can be appended.

    ``datasets`` are those of the sites with features of their own.
    """
    counter = file.get("rows_done")
    if counter is None or counter.dtype != np.dtype("<i8") or counter.id.get_offset() is None:
        return None
    forms = {(dataset.chunks and dataset.chunks[1], dataset.dtype) for dataset in datasets.values()}
    if len(forms) != 1:
        return None
    block, dtype = forms.pop()
    if not block or dtype not in (np.dtype("<f4"), np.dtype("<f2")):
        return None
    sites, rows = {}, len(file["sample"])
    for name, dataset in datasets.items():
        offsets = _offsets(dataset, (len(counter), -(-rows // block)), block)
        if offsets is None:
            return None
        sites[name] = SitePlaces(int(dataset.shape[2]), offsets)
    return Places(sites, int(counter.id.get_offset()), len(counter), rows, int(block), dtype)


def _offsets(dataset: Any, grid: tuple[int, int], block: int) -> NDArray[np.int64] | None:
    """Positions of all chunks, if each is stored as (block, D) numbers and a checksum, and nothing else."""
    from h5py import h5z

    plan, width = dataset.id.get_create_plist(), int(dataset.shape[2])
    if dataset.chunks != (1, block, width) or plan.get_nfilters() != 1:
        return None
    if plan.get_filter(0)[0] != h5z.FILTER_FLETCHER32:
        return None
    size = block * width * dataset.dtype.itemsize + 4
    offsets = np.zeros(grid, dtype=np.int64)

    def note(chunk: Any) -> None:
        if chunk.size == size and not chunk.filter_mask:
            offsets[chunk.chunk_offset[0], chunk.chunk_offset[1] // block] = chunk.byte_offset

    if hasattr(dataset.id, "chunk_iter"):
        dataset.id.chunk_iter(note)
    else:  # pragma: no cover - HDF5 before 1.12.3
        for number in range(dataset.id.get_num_chunks()):
            note(dataset.id.get_chunk_info(number))
    return offsets if offsets.all() else None
