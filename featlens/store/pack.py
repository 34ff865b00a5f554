"""Lossless compression of a complete feature file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from featlens.errors import UsageError
from featlens.files import atomic_path, explain_os_error
from featlens.store.copying import copy_tree, raw_rows, site_dataset, stored_form
from featlens.store.layout import chunk_rows
from featlens.store.open import new_hdf5
from featlens.store.reader import FeatureStore

__all__ = ["pack"]


def pack(
    path: os.PathLike[str] | str,
    out: os.PathLike[str] | str | None = None,
    level: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Path of a lossless compressed copy of a complete feature file: shuffle, gzip, checksum.

    Features, attributes, manifest, dimension scales and shared datasets are as before, and every reader of
    HDF5 reads the file as before. A kill at any moment leaves the old file or the new one. Memory is bounded
    by one chunk. A file that is packed already stays as it is. A file whose features lie in shards
    (``featlens merge --virtual``) becomes one that needs no shards.

    Parameters
    ----------
    path
        A complete feature file; an incomplete one is refused, since a compressed chunk cannot be overwritten
        in place.
    out
        Where the copy goes, replacing what is there; by default ``path`` itself.
    level
        Effort of gzip, 0 to 9.
    progress
        Called with (rows done, rows in all), counted over sigmas and sites.

    Examples
    --------
    >>> import tempfile
    >>> from featlens.store import FeatureWriter, SiteInfo
    >>> path = Path(tempfile.mkdtemp()) / "a.h5"
    >>> with FeatureWriter.create(path, [SiteInfo("enc", 0, 4)], [0.5], range(9000), {}) as writer:
    ...     writer.append(0, {"enc": np.zeros((9000, 4), dtype=np.float32)})
    >>> before = path.stat().st_size
    >>> pack(path).stat().st_size < before
    True
    """
    if level not in range(10):
        raise UsageError(f"pack: level must be a whole number from 0 to 9, got {level!r}")
    source = Path(path)
    target = source if out is None else Path(out)
    with FeatureStore(source) as store:
        store.require_complete()
        if out is None and _is_packed(store, level):
            return source
    # The old file is closed before the new one takes its name.
    with atomic_path(target) as temporary, FeatureStore(source) as store:
        try:
            _write(store, temporary, int(level), progress)
        except (OSError, RuntimeError) as error:
            # HDF5 raises some failures to write as a RuntimeError.
            raise explain_os_error(
                error if isinstance(error, OSError) else OSError(str(error)), target
            ) from error
    return target


def _is_packed(store: FeatureStore, level: int) -> bool:
    datasets = [site_dataset(store, site) for site in store.sites]
    return all(
        dataset.shuffle
        and dataset.fletcher32
        and (dataset.compression, dataset.compression_opts) == ("gzip", level)
        for dataset in datasets
    )


def _write(store: FeatureStore, path: Path, level: int, progress: Callable[[int, int], None] | None) -> None:
    shape = (len(store.sigmas), len(store))
    block = stored_form(store)[1]
    if block is None:
        block = chunk_rows(len(store), [site.width for site in store.sites.values()], 4)
    pending: list[tuple[str, Any]] = []

    def make(group: Any, name: str, old: Any) -> Any:
        if group.name != "/sites" or name not in store.sites:
            return None
        new = _compressed(group, name, old, block, level)
        pending.append((name, new))
        return new

    with new_hdf5(path) as file:
        copy_tree(store._file, file, make)
        total = len(pending) * shape[0] * shape[1]
        done = 0
        for name, dataset in pending:
            for index in range(shape[0]):
                for start in range(0, shape[1], block):
                    stop = min(start + block, shape[1])
                    dataset[index, start:stop] = raw_rows(store, name, index, start, stop)
                    done += stop - start
                    if progress is not None:
                        progress(done, total)


def _compressed(group: Any, name: str, old: Any, block: int, level: int) -> Any:
    import h5py

    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, block, old.shape[2]))
    properties.set_shuffle()
    properties.set_deflate(level)
    # Last, so that damage is found before anything is decompressed.
    properties.set_fletcher32()
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(np.nan, dtype=old.dtype))
    properties.set_attr_creation_order(h5py.h5p.CRT_ORDER_TRACKED | h5py.h5p.CRT_ORDER_INDEXED)
    handle = h5py.h5d.create(group.id, name.encode(), old.id.get_type(), old.id.get_space(), properties)
    return h5py.Dataset(handle)
