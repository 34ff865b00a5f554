"""Tensors of a pickle: the bytes that torch nests in it, read without torch's own loader.

A storage lies in the pickle as bytes that ``torch.save`` wrote: four small pickles, a list of keys and the
values (the form until torch 1.6, still used for this), or a zip archive. Both are read by the same machine
that reads the pickle around them.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featlens_trainers.convert.machine import Global, Inspection, Machine

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPES", "Storage", "StoredTensor", "read_storage", "stored_tensor"]

MAGIC = 0x1950A86A20F9469CFC6C
"""First number of a file of ``torch.save`` that is no zip archive."""

LEGACY_PROTOCOL = 1001
DIMENSIONS = 8

DTYPES = {
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
"""Type of the values and bytes of one, by torch's name of the storage."""

_MEANINGS = dict.fromkeys([f"torch.{name}" for name in DTYPES])


@dataclass(frozen=True)
class Storage:
    """Values in a row: their type, bytes of one, and all bytes."""

    dtype: str
    width: int
    data: memoryview

    def __len__(self) -> int:
        return len(self.data) // self.width


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that is not yet read: where its values lie in a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Such as ``float32``."""
        return self.storage.dtype

    def tensor(self) -> Tensor:
        """The values, in memory of their own."""
        import torch

        dtype = getattr(torch, self.storage.dtype)
        if 0 in self.size:
            return torch.empty(self.size, dtype=dtype)
        width, start = self.storage.width, self.offset
        values = bytearray(self.storage.data[start * width : (start + _span(self)) * width])
        return torch.frombuffer(values, dtype=dtype).as_strided(self.size, self.stride).contiguous()


def _span(tensor: StoredTensor) -> int:
    """Values between the first and the last of a tensor, both included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.size, tensor.stride, strict=True))


def stored_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """Tensor over a storage, whose values all lie in it and are all different ones."""
    if not isinstance(size, tuple | list) or not isinstance(stride, tuple | list):
        raise TypeError("a tensor without shape")
    if len(size) != len(stride) or len(size) > DIMENSIONS:
        raise ValueError(f"a tensor of {len(size)} dimensions and {len(stride)} strides")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Storage) or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError("a tensor without values")
    made = StoredTensor(storage, offset, size, stride)
    if 0 not in size:
        # A stride of 0 would make as large a tensor as one likes of a single value.
        if math.prod(size) > _span(made):
            raise ValueError("a tensor that shows the same value several times")
        if offset + _span(made) > len(storage):
            raise ValueError("a tensor that goes beyond its values")
    return made


@dataclass(frozen=True)
class _Reference:
    dtype: str
    width: int
    key: str
    length: int


def _reference(identity: Any) -> _Reference:
    """What ``('storage', type, key, place, length, ...)`` refers to."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("a reference to something else than a storage")
    _, kind, key, _, length, *view = identity
    if not isinstance(kind, Global) or kind.module != "torch" or kind.name not in DTYPES:
        raise ValueError("a storage of unknown type")
    if not isinstance(key, str) or type(length) is not int or length < 0 or view not in ([], [None]):
        raise ValueError("a storage that is a view of another")
    return _Reference(*DTYPES[kind.name], key, length)


def read_storage(blob: Any, inspection: Inspection) -> Storage:
    """Storage in the bytes that ``torch.save`` made of it."""
    if not isinstance(blob, bytes):
        raise TypeError("a storage that is no bytes")
    inspection.hold(len(blob))
    if sys.byteorder != "little":  # pragma: no cover - no machine of ours is
        raise ValueError("values of the other byte order")
    machine = Machine(_MEANINGS, inspection, _reference)
    if blob.startswith(b"PK\x03\x04"):
        return _from_zip(blob, machine)
    stream = io.BytesIO(blob)
    if machine.read(stream) != MAGIC or machine.read(stream) != LEGACY_PROTOCOL:
        raise ValueError("a storage that torch.save did not write")
    system = machine.read(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("values of the other byte order")
    there = machine.read(stream)
    keys = machine.read(stream)
    if not isinstance(there, _Reference) or not isinstance(keys, list) or len(keys) != 1:
        raise ValueError("not one storage")
    (length,) = struct.unpack("<q", stream.read(8))
    if keys[0] != there.key or length != there.length:
        raise ValueError("a storage of another name or length")
    return _storage(there, memoryview(blob)[stream.tell() :])


def _from_zip(blob: bytes, machine: Machine) -> Storage:
    try:
        archive = zipfile.ZipFile(io.BytesIO(blob))
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    with archive:
        (index,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        root = index.removesuffix("data.pkl")
        there = machine.read(io.BytesIO(_member(archive, index, len(blob))))
        if not isinstance(there, _Reference):
            raise ValueError("not one storage")
        order = f"{root}byteorder"
        if order in archive.namelist() and _member(archive, order, 100) != b"little":
            raise ValueError("values of the other byte order")
        return _storage(there, memoryview(_member(archive, f"{root}data/{there.key}", len(blob))))


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    about = archive.getinfo(name)
    # torch compresses nothing; what is compressed could become as large as it likes.
    if about.compress_type != zipfile.ZIP_STORED or about.file_size > most:
        raise ValueError(f"a compressed part {name}")
    try:
        return archive.read(about)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None


def _storage(there: _Reference, data: memoryview) -> Storage:
    needed = there.length * there.width
    if len(data) < needed:
        raise ValueError(f"{len(data)} bytes of {needed}")
    return Storage(there.dtype, there.width, data[:needed])
