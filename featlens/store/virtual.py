"""Virtual feature files: rows that lie in shards beside the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from featlens.errors import FeatlensError, StoreError
from featlens.store.open import shown

__all__ = ["Part", "open_shards", "parts_of"]

MOST_PARTS = 100_000
SITES = "/sites/"

Store = TypeVar("Store", bound=Any)


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a site lie in the shard ``file`` as all rows of its ``site``."""

    start: int
    stop: int
    file: str
    site: str


def parts_of(dataset: Any, where: str) -> list[Part]:
    """Where the rows of a virtual dataset lie, checked: whole shards, in plain files of the same folder."""
    plan = dataset.id.get_create_plist()
    count = plan.get_virtual_count()
    if count > MOST_PARTS:
        raise StoreError(f"{where} has {count} parts, expected at most {MOST_PARTS}")
    parts = [_part(plan, number, dataset.shape, where) for number in range(count)]
    parts.sort(key=lambda part: part.start)
    edges = [0, *(part.stop for part in parts)]
    if [part.start for part in parts] != edges[:-1] or edges[-1] != dataset.shape[1]:
        raise StoreError(f"{where} is virtual, and its parts do not make up its {dataset.shape[1]} rows")
    return parts


def _part(plan: Any, number: int, shape: tuple[int, int, int], where: str) -> Part:
    file, name = plan.get_virtual_filename(number), plan.get_virtual_dsetname(number)
    told = f"{where} takes rows from {shown(ascii(file), 80)}"
    if file in ("", ".", "..") or any(letter in file for letter in "/\\%:\0"):
        raise StoreError(f"{told}; expected the plain name of a file in the same folder")
    if not name.startswith(SITES) or "/" in name[len(SITES) :]:
        raise StoreError(f"{told}, dataset {shown(ascii(name), 80)}; expected one of its sites")
    space = plan.get_virtual_vspace(number)
    if space.get_select_npoints() and space.is_regular_hyperslab():
        low, high = space.get_select_bounds()
        whole = low[0] == low[2] == 0 and (high[0], high[2]) == (shape[0] - 1, shape[2] - 1)
        size = shape[0] * (high[1] - low[1] + 1) * shape[2]
        if (
            whole
            and space.get_select_npoints() == size
            and _is_whole(plan.get_virtual_srcspace(number), size)
        ):
            return Part(int(low[1]), int(high[1]) + 1, file, name[len(SITES) :])
    raise StoreError(f"{told} in a way that featlens does not write; merge the shards again")


def _is_whole(space: Any, size: int) -> bool:
    from h5py import h5s

    if space.get_select_type() == h5s.SEL_ALL:
        return True
    # HDF5 keeps no extent of a source but its selection; that the shard has no more rows is checked there.
    return bool(space.get_select_npoints() == size and not any(space.get_select_bounds()[0]))


def open_shards(files: Iterable[str], path: Path, open_store: Callable[[Path], Store]) -> dict[str, Store]:
    """Stores of all shards of a virtual file; one that is not there or not whole is named."""
    stores: dict[str, Store] = {}
    try:
        for file in files:
            shard = path.parent / file
            if not shard.is_file():
                raise StoreError(
                    f"{path}: its shard {shown(file)} is missing (not in {path.parent}); "
                    "put it back or merge again"
                )
            stores[file] = open_store(shard)
            stores[file].require_complete()
    except FeatlensError:
        for store in stores.values():
            store.close()
        raise
    return stores
