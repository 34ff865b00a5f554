"""Images in HDF5 files."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.files import explain_os_error
from featlens.sources.arrays import LABEL_KEYS, Layout, layout_of, pick
from featlens.sources.records import Handle, runs
from featlens.sources.source import Source, check_label_shape, checked_labels

__all__ = ["open_hdf5"]

IMAGE_KEYS = ("images", "x", "data")


def _open(path: Path) -> Any:
    import h5py

    try:
        # Room for a few large chunks: rows of one chunk are asked for one after the other.
        return h5py.File(path, "r", rdcc_nbytes=32 * 2**20)
    except OSError as error:
        if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError | BlockingIOError):
            raise explain_os_error(error, path) from error
        raise FeatlensError(
            f"{path}: not an HDF5 file, or damaged or cut off; copy or download it again"
        ) from error


class _Dataset:
    """Rows of a data set."""

    def __init__(self, path: Path, key: str, layout: Layout, dtype: np.dtype[Any], chunk: int) -> None:
        self.shape: tuple[int, ...] = layout.shape
        self.dtype = dtype
        self._where, self._key, self._layout, self._chunk = f"{path}:{key}", key, layout, chunk
        self._handle: Handle[Any] = Handle(partial(_open, path))

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Raw pixels (len(ids), C, H, W)."""
        wanted, back = np.unique(ids, return_inverse=True)
        raw: NDArray[Any] | None = None
        with self._handle.use() as file:
            data = file[self._key]
            for run in runs(wanted, self._chunk):
                first = int(wanted[run.start])
                try:
                    block = data[first : int(wanted[run.stop - 1]) + 1]
                except OSError as error:
                    raise FeatlensError(
                        f"{self._where}: damaged or cut off near image {first}; copy or download it again"
                    ) from error
                raw = np.empty((len(wanted), *block.shape[1:]), dtype=self.dtype) if raw is None else raw
                raw[run] = block[wanted[run] - first]
        if raw is None:
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        return self._layout.arranged(raw if np.array_equal(wanted, ids) else raw[back])

    def close(self) -> None:
        """Close the file until it is needed again."""
        self._handle.close()


def open_hdf5(path: Path, key: str | None = None) -> Source:
    """Images of a data set of an HDF5 file, and the labels beside it."""
    with _open(path) as file:
        chosen = _choose(file, key, str(path))
        where = f"{path}:{chosen}"
        data = _checked(file, chosen, where)
        layout = layout_of(data.shape, where)
        group = chosen.rpartition("/")[0]
        labels = None
        for name in LABEL_KEYS:
            beside = f"{group}/{name}" if group else name
            if beside != chosen and beside in file:
                held = _checked(file, beside, f"{path}:{beside}")
                check_label_shape(held.shape, layout.shape[0], f"{path}:{beside}")
                labels = checked_labels(held[()], layout.shape[0], f"{path}:{beside}")
                break
        chunk = data.chunks[0] if data.chunks else 1
        reader = _Dataset(path, chosen, layout, data.dtype, chunk)
    return Source(path.name, reader, labels)


def _choose(file: Any, key: str | None, where: str) -> str:
    """Full name of the data set with the images."""
    import h5py

    there: list[str] = []
    file.visititems(lambda name, item: there.append(name) if isinstance(item, h5py.Dataset) else None)
    if key is not None:
        key = key.strip("/")
        _refuse_links(file, key, where)
        if key not in there:
            raise UsageError(f"samples: no data set {key!r} in {where}: {choices_hint(key, there)}")
        return key
    for name in IMAGE_KEYS:
        _refuse_links(file, name, where)
    return pick(None, there, IMAGE_KEYS, where)


def _refuse_links(file: Any, key: str, where: str) -> None:
    import h5py

    parts = key.split("/")
    for stop in range(1, len(parts) + 1):
        name = "/".join(parts[:stop])
        link = file.get(name, getlink=True) if name else None
        if isinstance(link, h5py.SoftLink | h5py.ExternalLink):
            raise FeatlensError(
                f"{where}: {name!r} is a link to {link.path!r}; name the file and the data set themselves"
            )
        if link is None:
            return


def _checked(file: Any, key: str, where: str) -> Any:
    """The data set, if all of its numbers lie in this file and were written."""
    import h5py

    _refuse_links(file, key, where)
    data = file[key]
    if not isinstance(data, h5py.Dataset):
        raise FeatlensError(f"{where}: is a group, expected a data set; name a data set inside it")
    if data.shape is None or data.dtype.kind not in "biuf":
        raise FeatlensError(f"{where}: holds {data.dtype}, expected numbers; save them as uint8 or float32")
    if data.is_virtual or data.external:
        raise FeatlensError(
            f"{where}: its numbers lie in other files (virtual or external); copy them into one file"
        )
    if not data.size:
        return data
    written, expected = data.id.get_storage_size(), data.size * data.dtype.itemsize
    if data.chunks:
        expected = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
        written = data.id.get_num_chunks()
    # HDF5 gives zeros for what was never written.
    if written < expected:
        unit = "chunks" if data.chunks else "bytes"
        raise FeatlensError(
            f"{where}: expected {expected} {unit} for {data.dtype} {data.shape}, found {written}; "
            "it was never written whole, write it again"
        )
    return data
