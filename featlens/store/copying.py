"""Copying the structure of a feature file into another one, with its features stored in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import StoreError
from featlens.store.reader import FeatureStore

__all__ = ["copy_tree", "raw_rows", "site_dataset", "stored_form"]

COPY_BYTES = 1 << 24
SCALES = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST"}
"""Attributes that dimension scales are made of; they hold references into their own file."""

Make = Callable[[Any, str, Any], Any]
"""Called with (new group, name, old dataset); returns the new dataset, or None to have it copied as it is."""


def site_dataset(store: FeatureStore, site: str) -> Any:
    """The HDF5 dataset (S, N, D) of a site, in the type in which it is stored."""
    return store._datasets[site]


def stored_form(store: FeatureStore) -> tuple[np.dtype[Any], int | None]:
    """Type of the stored features, and rows a chunk if all sites are chunked by the same number of rows."""
    datasets = [site_dataset(store, site) for site in store.sites]
    blocks = {dataset.chunks[1] if dataset.chunks else None for dataset in datasets}
    kind = np.result_type(*(dataset.dtype for dataset in datasets))
    return kind, blocks.pop() if len(blocks) == 1 else None


def raw_rows(store: FeatureStore, site: str, index: int, start: int, stop: int) -> NDArray[Any]:
    """Features (stop - start, D) at the sigma of this index, in the type in which they are stored."""
    if site in store._parts:
        # HDF5 would look for the shards elsewhere, too, and give fill values for those that it does not find.
        pieces = [
            raw_rows(shard, part.site, index, max(start - part.start, 0), min(stop, part.stop) - part.start)
            for part in store._parts[site]
            for shard in [store._shards[part.file]]
            if part.start < stop and start < part.stop
        ]
        return np.concatenate(pieces)
    try:
        rows: NDArray[Any] = site_dataset(store, site)[index, start:stop]
    except Exception:
        return store._read(site, index, start, stop)  # Says what is damaged.
    return rows


def copy_tree(source: Any, target: Any, make: Make) -> None:
    """Copy groups, datasets, attributes, links and dimension scales of an HDF5 file into an empty one."""
    copied: dict[int, tuple[Any, Any]] = {}
    _copy_group(source, target, make, copied)
    datasets = [(old, new) for old, new in copied.values() if hasattr(old, "dims")]
    for old, new in datasets:
        if old.is_scale:
            import h5py

            h5py.h5ds.set_scale(new.id, h5py.h5ds.get_scale_name(old.id))
    for old, new in datasets:
        # HDF5 refuses to attach a scale to a scale.
        for axis in range(0 if old.is_scale else len(old.shape or ())):
            for scale in old.dims[axis].values():
                found = copied.get(_address(scale))
                if found is not None:
                    new.dims[axis].attach_scale(found[1])


def _address(thing: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(thing.id).addr)


def _copy_group(source: Any, target: Any, make: Make, copied: dict[int, tuple[Any, Any]]) -> None:
    import h5py

    copied[_address(source)] = (source, target)
    _copy_attributes(source, target)
    for name in source:
        link = source.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            target[name] = link
            continue
        old = source[name]
        known = copied.get(_address(old))
        if known is not None:
            target[name] = known[1]
        elif isinstance(old, h5py.Group):
            _copy_group(old, target.create_group(name), make, copied)
        elif isinstance(old, h5py.Dataset):
            made = make(target, name, old)
            new = _copy_dataset(target, name, old) if made is None else made
            copied[_address(old)] = (old, new)
            _copy_attributes(old, new)
        else:
            target[name] = old.dtype


def _copy_attributes(source: Any, target: Any) -> None:
    import h5py

    for name in source.attrs:
        old = h5py.h5a.open(source.id, name.encode())
        if name in SCALES or name in target.attrs or h5py.check_ref_dtype(old.dtype) is not None:
            continue
        new = h5py.h5a.create(target.id, name.encode(), old.get_type(), old.get_space())
        if old.get_space().get_simple_extent_type() != h5py.h5s.NULL:
            value = np.empty(old.shape, dtype=old.dtype)
            old.read(value)
            new.write(value)


def _copy_dataset(group: Any, name: str, old: Any) -> Any:
    """A dataset that holds no features, in slices of bounded size; virtual and external ones become plain."""
    import h5py

    if h5py.check_ref_dtype(old.dtype) is not None:
        raise StoreError(f"{old.file.filename}: dataset {old.name!r} holds references and cannot be copied")
    properties = old.id.get_create_plist() if old.chunks else h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    # With the time of the copy inside, two copies of one file would differ.
    properties.set_obj_track_times(False)
    handle = h5py.h5d.create(group.id, name.encode(), old.id.get_type(), old.id.get_space(), properties)
    new = h5py.Dataset(handle)
    if old.shape is None:
        return new
    if not old.shape:
        new[()] = old[()]
        return new
    rows = max(1, COPY_BYTES // max(1, old.dtype.itemsize * int(np.prod(old.shape[1:]))))
    for start in range(0, old.shape[0], rows):
        new[start : start + rows] = old[start : start + rows]
    return new
