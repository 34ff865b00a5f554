"""Laying down a feature file: all of its structure, with every chunk in its place and filled with NaN."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.store.checksum import fletcher32
from featlens.store.layout import FORMAT, VERSION, SiteInfo, creator, primaries, site_attributes
from featlens.store.open import new_hdf5
from featlens.store.places import Places, find_places

__all__ = ["Plan", "lay_down", "write_text", "write_vector"]

MOST_VECTOR_ROWS = 1 << 16


@dataclass(frozen=True)
class Plan:
    """What a feature file will hold.

    Attributes
    ----------
    sites
        Sites, those that share the features of another included.
    sigmas
        (S,) noise levels.
    ids
        (N,) sample ids.
    manifest
        Where the features come from.
    labels
        (N,) or None.
    dtype
        Type of the stored features.
    block
        Rows a chunk.
    """

    sites: Sequence[SiteInfo]
    sigmas: NDArray[np.float64]
    ids: NDArray[np.int64]
    manifest: Mapping[str, Any]
    labels: NDArray[np.int64] | None
    dtype: np.dtype[Any]
    block: int

    @property
    def size(self) -> int:
        """Bytes of the file, but for the few kilobytes that say what it is."""
        chunks = len(self.sigmas) * -(-len(self.ids) // self.block)
        widths = [site.width for site in primaries(self.sites)]
        features = sum(chunks * (self.block * width * self.dtype.itemsize + 16) for width in widths)
        vectors = len(self.ids) * (1 if self.labels is None else 2) + sum(widths)
        return features + 8 * vectors


def lay_down(path: Path, plan: Plan) -> Places | None:
    """Write the file without its rows, and tell where they belong.

    OSError or RuntimeError if the disk does not take it.
    """
    with new_hdf5(path, fillings=_fillings(plan)) as file:
        write_text(file, "format", FORMAT)
        file.attrs["version"] = np.int64(VERSION)
        write_text(
            file,
            "manifest",
            json.dumps({**plan.manifest, "creator": plan.manifest.get("creator", creator())}),
        )
        # Behind the manifest, and so near the header's checksum: a kill can tear a write of several pages.
        file.attrs["complete"] = np.int64(0)
        write_vector(file, "sigma", plan.sigmas).make_scale("sigma")
        write_vector(file, "sample", plan.ids).make_scale("sample")
        if plan.labels is not None:
            write_vector(file, "label", plan.labels).dims[0].attach_scale(file["sample"])
        file["rows_done"] = np.zeros(len(plan.sigmas), dtype=np.int64)
        file["rows_done"].dims[0].attach_scale(file["sigma"])
        group = file.create_group("sites")
        taken, datasets = {site.name for site in plan.sites}, {}
        for site in primaries(plan.sites):
            scale = f"{site.name}_feature"
            while scale in taken:
                scale += "_"
            taken.add(scale)
            datasets[site.name] = dataset = _lay_down_site(group, site, plan)
            _attach_scales(dataset, file, scale)
            sharing = [other for other in plan.sites if other.same_as == site.name]
            _describe(dataset, site, sharing)
            for other in sharing:
                group[other.name] = dataset
        return find_places(file, datasets)


def _fillings(plan: Plan) -> list[bytes]:
    """Chunks without rows, as they are stored; HDF5 would write them one by one."""
    widths = {site.width for site in plan.sites}
    chunks = [np.full((plan.block, width), np.nan, dtype=plan.dtype) for width in widths]
    return [chunk.tobytes() + fletcher32(chunk) for chunk in chunks]


def _lay_down_site(group: Any, site: SiteInfo, plan: Plan) -> Any:
    from h5py import Dataset, h5d, h5p, h5s, h5t

    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((1, plan.block, site.width))
    properties.set_fletcher32()
    properties.set_obj_track_times(False)
    properties.set_fill_value(np.array(np.nan, dtype=plan.dtype))
    # Early allocation: after this, writing rows never moves a chunk or touches an index.
    properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5d.FILL_TIME_ALLOC)
    properties.set_attr_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    naming = h5p.create(h5p.LINK_CREATE)
    naming.set_char_encoding(h5t.CSET_ASCII if site.name.isascii() else h5t.CSET_UTF8)
    space = h5s.create_simple((len(plan.sigmas), len(plan.ids), site.width))
    kind = h5t.py_create(plan.dtype)
    return Dataset(h5d.create(group.id, site.name.encode(), kind, space, properties, naming))


def _attach_scales(dataset: Any, file: Any, name: str) -> None:
    group = file["sites"]
    write_vector(group, name, np.arange(dataset.shape[2])).make_scale(name)
    for axis, scale in enumerate((file["sigma"], file["sample"], group[name])):
        dataset.dims[axis].attach_scale(scale)


def _describe(dataset: Any, site: SiteInfo, sharing: Sequence[SiteInfo]) -> None:
    for key, value in site_attributes(site).items():
        if isinstance(value, int):
            dataset.attrs[key] = np.int64(value)
        else:
            write_text(dataset, key, value)
    if sharing:
        write_text(dataset, "aliases", json.dumps({other.name: site_attributes(other) for other in sharing}))


def write_text(thing: Any, name: str, text: str) -> None:
    """Set a string attribute, of fixed length: it then lies in the object header, which has a checksum."""
    from h5py import string_dtype

    data = text.encode("utf-8", "replace")
    thing.attrs.create(name, data, dtype=string_dtype("utf-8", max(1, len(data))))


def write_vector(group: Any, name: str, values: NDArray[Any]) -> Any:
    """A new dataset (rows,) with a checksum, unlike what h5py makes by itself."""
    chunk = (min(len(values), MOST_VECTOR_ROWS),)
    return group.create_dataset(name, data=values, chunks=chunk, fletcher32=True)
