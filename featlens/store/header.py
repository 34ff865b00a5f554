"""What a feature file says about itself, checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import StoreError
from featlens.store.guard import check_dataset, check_size, integer, linked, text, vector
from featlens.store.layout import FORMAT, VERSION, SiteInfo, check_site_name
from featlens.store.open import shown

__all__ = ["Header", "read_header"]


@dataclass(frozen=True)
class Header:
    """Everything but the features; ``datasets`` holds the HDF5 dataset (S, N, D) of each site."""

    manifest: dict[str, Any]
    sigmas: NDArray[np.float64]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    rows_done: NDArray[np.int64]
    complete: bool
    sites: dict[str, SiteInfo]
    datasets: dict[str, Any]


def read_header(file: Any, path: Path) -> Header:
    """Header of an open HDF5 file; a :class:`StoreError` says what is wrong with it."""
    _check_format(file, path)
    manifest = _json_object(text(file, "manifest"), "the manifest")
    sigmas = _required(vector(file, "sigma", "fiu"), "/sigma")
    if not (np.isfinite(sigmas).all() and (sigmas > 0).all() and len(np.unique(sigmas)) == len(sigmas)):
        raise StoreError(f"'/sigma' holds {shown(sigmas.tolist(), 60)}, expected different numbers above 0")
    ids = _required(vector(file, "sample", "iu"), "/sample")
    labels = vector(file, "label", "iu", len(ids))
    complete, done = _progress(file, len(sigmas), len(ids))
    group = linked(file, "sites", "'/sites'")
    if not hasattr(group, "keys"):
        raise StoreError("the group '/sites' is missing")
    datasets = _datasets(group, (len(sigmas), len(ids)), int(done.sum()))
    return Header(manifest, sigmas, ids, labels, done, complete, _sites(datasets), datasets)


def _check_format(file: Any, path: Path) -> None:
    if "format" not in file.attrs or text(file, "format") != FORMAT:
        raise StoreError(
            f"{path}: expected an HDF5 file of format {FORMAT!r}, found another HDF5 file; "
            "make one with 'featlens extract'"
        )
    version = integer(file, "version", least=1)
    if version is None:
        raise StoreError("the attribute 'version' is missing")
    if version > VERSION:
        raise StoreError(
            f"{path} was written by a newer featlens (format version {version}, this one reads {VERSION}); "
            "upgrade featlens"
        )


def _progress(file: Any, sigmas: int, rows: int) -> tuple[bool, NDArray[np.int64]]:
    complete = bool(integer(file, "complete"))
    done = vector(file, "rows_done", "iu", sigmas)
    if done is None:
        done = np.full(sigmas, rows * complete)
    if sigmas and (done.min() < 0 or done.max() > rows or (complete and done.min() < rows)):
        state = "complete" if complete else "incomplete"
        raise StoreError(
            f"'/rows_done' holds {shown(done.tolist(), 60)}, which does not fit {rows} rows that are {state}"
        )
    return complete, done


def _required(values: NDArray[Any] | None, name: str) -> NDArray[Any]:
    if values is None:
        raise StoreError(f"the dataset {name!r} is missing")
    return values


def _json_object(value: str | None, where: str) -> dict[str, Any]:
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where} is not JSON: {shown(error, 60)}") from None
    if not isinstance(found, dict):
        raise StoreError(f"{where} is a JSON {type(found).__name__}, expected an object")
    return found


def _datasets(group: Any, shape: tuple[int, int], rows_done: int) -> dict[str, Any]:
    """Datasets with three axes, by name, in the order of the group; all else is not ours."""
    import h5py

    found = {}
    for name in group:
        where = f"site {shown(ascii(name), 80)}"
        thing = linked(group, _checked_name(name), where)
        if not isinstance(thing, h5py.Dataset) or len(thing.shape or ()) != 3:
            continue
        if thing.shape[:2] != shape or thing.shape[2] < 1:
            raise StoreError(
                f"{where} has shape {thing.shape}, expected ({shape[0]}, {shape[1]}, features); "
                "the file is damaged"
            )
        check_dataset(thing, where, "f", virtual=True)
        if not thing.is_virtual:
            needed = rows_done * int(thing.shape[2]) * thing.dtype.itemsize
            check_size(thing, where, needed, group.file.id.get_filesize())
        found[name] = thing
    return found


def _checked_name(name: str | bytes) -> str:
    # h5py gives names as bytes that are no UTF-8.
    try:
        return check_site_name(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
    except StoreError as error:
        raise StoreError(str(error).replace("cannot be stored", "is not allowed")) from None


def _sites(datasets: dict[str, Any]) -> dict[str, SiteInfo]:
    import h5py

    addresses = {name: h5py.h5o.get_info(dataset.id).addr for name, dataset in datasets.items()}
    found: dict[str, SiteInfo] = {}
    sharing = set()
    for position, (name, dataset) in enumerate(datasets.items()):
        width = int(dataset.shape[2])
        told = _json_object(text(dataset, "aliases"), f"attribute 'aliases' of site {name!r}").get(name)
        if isinstance(told, dict):
            sharing.add(name)
            found[name] = _from_alias(name, told, position, width)
        else:
            found[name] = _from_attributes(name, dataset, position, width)
    owners = {addresses[name]: name for name in reversed(found) if name not in sharing}
    for name in sharing:
        found[name] = replace(found[name], same_as=owners.get(addresses[name], ""))
    return {site.name: site for site in sorted(found.values(), key=lambda site: site.order)}


def _from_attributes(name: str, dataset: Any, position: int, width: int) -> SiteInfo:
    try:
        order = integer(dataset, "order")
        return SiteInfo(
            name,
            position if order is None else order,
            width,
            integer(dataset, "channels") or 0,
            integer(dataset, "resolution") or 0,
            text(dataset, "reducer") or "",
            text(dataset, "kind") or "",
        )
    except StoreError as error:
        raise StoreError(f"site {name!r}: {error}") from None


def _from_alias(name: str, told: dict[str, Any], position: int, width: int) -> SiteInfo:
    numbers = [told.get("order", position), told.get("channels", 0), told.get("resolution", 0)]
    words = [told.get("reducer", ""), told.get("kind", "")]
    if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) or not all(
        isinstance(word, str) for word in words
    ):
        raise StoreError(f"attribute 'aliases' tells nonsense of site {name!r}")
    return SiteInfo(name, numbers[0], width, numbers[1], numbers[2], *words)
