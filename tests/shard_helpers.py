"""Shards as ``extract`` writes them, for the tests of what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featlens.store import FeatureWriter, SiteInfo
from featlens.store.shards import shard_path, shard_rows

N, BLOCK = 70, 16


SIGMAS = [0.5, 2.0]


SITES = [
    SiteInfo("enc.conv", 0, 5, channels=5, resolution=8, reducer="gap", kind="Conv2d"),
    SiteInfo("enc.same", 1, 5, channels=5, resolution=8, reducer="gap", kind="Identity", same_as="enc.conv"),
    SiteInfo("dec#0", 2, 3, channels=3, reducer="gap", kind="Linear"),
]


MANIFEST = {"model": "m", "weights_digest": "w", "sample_digest": "d"}


def features(site: str, index: int, rows: slice, dtype: str = "float32") -> np.ndarray:
    """Every number is a function of its place alone."""
    width = {"enc.conv": 5, "dec#0": 3}[site]
    numbers = np.arange(rows.start, rows.stop)[:, None] * 7 + np.arange(width) * (index + 1)
    return np.sqrt(numbers).astype(dtype)


def write(path: Path, rows: slice = slice(0, N), shard: Any = None, done: int | None = None, **changed: Any):
    """A file of these rows, as ``extract`` writes it; ``done`` rows of the last sigma only."""
    options: dict[str, Any] = {
        "sites": SITES,
        "sigmas": SIGMAS,
        "ids": np.arange(100, 100 + N)[rows],
        "manifest": MANIFEST if shard is None else {**MANIFEST, "shard": shard},
        "labels": (np.arange(N) % 3)[rows],
        "block": BLOCK,
        **changed,
    }
    dtype = options.get("dtype", "float32")
    with FeatureWriter.create(path, **options) as writer:
        for index in range(len(options["sigmas"])):
            stop = rows.stop if done is None or index == 0 else rows.start + done
            if stop > rows.start:
                block = slice(rows.start, stop)
                writer.append(index, {name: features(name, index, block, dtype) for name in writer.names})
    return path


def write_shards(out: Path, count: int, **changed: Any) -> list[Path]:
    found = []
    for index in range(count):
        rows = shard_rows(N, BLOCK, index, count)
        if rows.start < rows.stop:
            place = {"index": index, "count": count, "first": rows.start, "total": N}
            found.append(write(shard_path(out, index, count), rows, place, **changed))
    return found


def dump(path: Path) -> dict[str, Any]:
    """Everything in a file: values, types, layout, attributes, scales, and which names are one object."""
    found: dict[str, Any] = {}
    names: dict[int, str] = {}

    def attributes(thing: Any) -> dict[str, Any]:
        skip = ("REFERENCE_LIST", "DIMENSION_LIST")
        return {key: (str(value), type(value)) for key, value in thing.attrs.items() if key not in skip}

    def visit(group: Any, prefix: str) -> None:
        for name in group:
            thing, place = group[name], f"{prefix}/{name}"
            first = names.setdefault(h5py.h5o.get_info(thing.id).addr, place)
            entry: dict[str, Any] = {"first": first, "attrs": attributes(thing)}
            if isinstance(thing, h5py.Dataset):
                plan = thing.id.get_create_plist()
                entry |= {
                    "dtype": thing.dtype,
                    "shape": thing.shape,
                    "chunks": thing.chunks,
                    "filters": [plan.get_filter(number)[:3] for number in range(plan.get_nfilters())],
                    "fill": str(thing.fillvalue),
                    "scales": [[scale.name for scale in axis.values()] for axis in thing.dims],
                    "bytes": thing[()].tobytes(),
                }
            found[place] = entry
            if isinstance(thing, h5py.Group) and first == place:
                visit(thing, place)

    with h5py.File(path) as file:
        found["/"] = attributes(file)
        visit(file, "")
    return found


def debris(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


def flip(path: Path, site: str, place: tuple[int, int, int]) -> None:
    with h5py.File(path) as file:
        start = file["sites"][site].id.get_chunk_info_by_coord(place).byte_offset
    data = bytearray(path.read_bytes())
    data[start + 3] ^= 4
    path.write_bytes(data)
