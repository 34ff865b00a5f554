"""Taking datasets and attributes out of an HDF5 file that may be damaged or hostile.

Nothing outside the file is followed, nothing is unpickled, and no memory is taken for data that the file
cannot hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import StoreError
from featlens.store.open import shown

__all__ = ["check_dataset", "check_size", "integer", "linked", "text", "vector"]

ALLOWANCE = 1 << 24
"""Bytes that may be made from filtered data however few are stored."""
EXPANSION = {1: 1100, 2: 1, 3: 1}
"""Most bytes that a filter makes of one: deflate (1); shuffle (2) and Fletcher-32 (3) change no size."""
MOST_EXPANSION = 20_000
LONGEST_TEXT = 1 << 26


def linked(group: Any, name: str, where: str) -> Any:
    """What ``name`` is in ``group``; None if it is not there. Links that lead elsewhere are refused."""
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise StoreError(f"{where} is a link to another place; expected it in the file itself")
    return group[name]


def check_dataset(dataset: Any, where: str, kinds: str, virtual: bool = False) -> None:
    """Refuse a dataset of the wrong type or one that lies outside the file.

    ``kinds`` are numpy's letters: ``"f"`` for floating point, ``"iu"`` for integers.
    """
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise StoreError(f"{where} is no dataset")
    plan = dataset.id.get_create_plist()
    if plan.get_external_count():
        raise StoreError(f"{where} keeps its data in another file; expected it in the file itself")
    if plan.get_layout() == h5py.h5d.VIRTUAL and not virtual:
        raise StoreError(f"{where} is virtual; expected its data in the file itself")
    kind = dataset.dtype
    if kind.kind not in kinds or kind.itemsize > 8 or kind.fields or kind.subdtype:
        wanted = "floating point numbers" if kinds == "f" else "whole numbers" if kinds == "iu" else "numbers"
        raise StoreError(f"{where} has type {shown(kind, 40)}, expected {wanted}")


def check_size(dataset: Any, where: str, needed: int, file_size: int) -> None:
    """Refuse a dataset that promises more bytes than what is stored can be decoded into."""
    plan = dataset.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    expansion = max([EXPANSION.get(code, MOST_EXPANSION) for code in filters], default=1)
    if dataset.chunks and needed:
        chunk = dataset.dtype.itemsize
        for extent in dataset.chunks:
            chunk *= int(extent)
        # HDF5 makes room for a whole chunk, of which a dataset may use only a part.
        needed = max(needed, chunk)
    stored = min(dataset.id.get_storage_size(), file_size)
    if needed > expansion * stored + (ALLOWANCE if expansion > 1 else 0):
        raise StoreError(f"{where} promises {needed} bytes, {stored} are stored")


def vector(file: Any, name: str, kinds: str, length: int | None = None) -> NDArray[Any] | None:
    """Values of a one-dimensional dataset of the root group; None if it is not there."""
    where = f"'/{name}'"
    found = linked(file, name, where)
    if found is None:
        return None
    check_dataset(found, where, kinds)
    if found.ndim != 1 or (length is not None and found.shape != (length,)):
        expected = "one axis" if length is None else f"shape ({length},)"
        raise StoreError(f"{where} has shape {found.shape}, expected {expected}")
    check_size(found, where, int(found.shape[0]) * found.dtype.itemsize, file.id.get_filesize())
    try:
        values: NDArray[Any] = found[:]
    except OSError as error:
        raise StoreError(f"{where} cannot be read: {shown(error, 80)}") from None
    if kinds != "iu":
        return values.astype(np.float64)
    if values.dtype.kind == "u" and values.size and int(values.max()) > np.iinfo(np.int64).max:
        raise StoreError(f"{where} holds numbers beyond 63 bits")
    return values.astype(np.int64)


def _attribute(thing: Any, name: str) -> Any:
    import h5py

    if name not in thing.attrs:
        return None
    handle = h5py.h5a.open(thing.id, name.encode())
    if handle.get_space().get_simple_extent_npoints() != 1 or handle.get_storage_size() > LONGEST_TEXT:
        raise StoreError(f"attribute {name!r} is not a single value")
    value = thing.attrs[name]
    return value.reshape(-1)[0] if isinstance(value, np.ndarray) else value


def text(thing: Any, name: str) -> str | None:
    """Attribute that is a string, of fixed or variable length; None if it is not there."""
    value = _attribute(thing, name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if value is None:
        return None
    if not isinstance(value, str):
        raise StoreError(f"attribute {name!r} is {shown(type(value).__name__)}, expected a string")
    return str(value).rstrip(" \0")


def integer(thing: Any, name: str, least: int = 0) -> int | None:
    """Attribute that is a whole number; None if it is not there."""
    value = _attribute(thing, name)
    if value is None:
        return None
    number = isinstance(value, (int, float, np.bool_, np.integer, np.floating)) and np.isfinite(value)
    if not number or int(value) != value or not least <= int(value) < 1 << 62:
        raise StoreError(f"attribute {name!r} is {shown(value, 40)}, expected a whole number from {least}")
    return int(value)
