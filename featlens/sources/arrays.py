"""Arrays of images: ``.npy`` and ``.npz``, and which axis of an array is which."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.sources.records import Records, Stream, open_zip, reading
from featlens.sources.source import Reader, Source, check_label_shape, checked_labels

__all__ = ["IMAGE_KEYS", "LABEL_KEYS", "Layout", "check_member", "layout_of", "open_npy", "open_npz", "pick"]

IMAGE_KEYS = ("images", "x", "arr_0")
LABEL_KEYS = ("labels", "y", "label")

_CHANNELS = (1, 3, 4)
_OWN = "bring it to (N, C, H, W) and use SampleSet.from_arrays"


@dataclass(frozen=True)
class Layout:
    """Which axes of a stored array are which: ``"NCHW"``, ``"NHWC"`` or ``"NHW"``."""

    axes: str
    shape: tuple[int, int, int, int]

    def arranged(self, block: NDArray[Any]) -> NDArray[Any]:
        """Stored rows as (rows, C, H, W)."""
        if self.axes == "NHWC":
            return np.ascontiguousarray(block.transpose(0, 3, 1, 2))
        return block.reshape(len(block), *self.shape[1:])


def layout_of(shape: tuple[int, ...], where: str) -> Layout:
    """Which axis is which in an array of the given shape.

    Raises
    ------
    FeatlensError
        No images in it, or a shape that means nothing or two things.

    Examples
    --------
    >>> layout_of((10, 32, 32, 3), "x.npy")
    Layout(axes='NHWC', shape=(10, 3, 32, 32))
    """
    if shape and min(shape) < 1:
        raise FeatlensError(f"{where}: holds no images, its shape is {shape}; write at least one image")
    if len(shape) == 3 and shape[2] not in _CHANNELS:
        n, h, w = shape
        return Layout("NHW", (n, 1, h, w))
    if len(shape) == 4:
        n, a, b, c = shape
        first, last = a in _CHANNELS, c in _CHANNELS
        if last and not first:
            return Layout("NHWC", (n, c, a, b))
        # (N, 32, 32, 16) is nobody's image of 32 channels and 32 x 16 pixels.
        if not last and a != b:
            return Layout("NCHW", (n, a, b, c))
    if len(shape) in (3, 4):
        raise FeatlensError(f"{where}: the shape {shape} can be read in more than one way; {_OWN}")
    raise FeatlensError(
        f"{where}: expected images (N, C, H, W), (N, H, W, C) or (N, H, W), got shape {shape}; {_OWN}"
    )


class _ArrayReader:
    """Rows of an array that lies in a file; ``forwards`` where reaching one means reading those before it."""

    def __init__(self, records: Records, layout: Layout, forwards: bool = False) -> None:
        self._records, self._layout, self.forwards = records, layout, forwards
        self.shape: tuple[int, ...] = layout.shape
        self.dtype: np.dtype[Any] = records.dtype

    def read(self, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Raw pixels (len(ids), C, H, W)."""
        return self._layout.arranged(self._records.read(ids))

    def close(self) -> None:
        """Close the file until it is needed again."""
        self._records.close()


def _header(file: IO[bytes], size: int, where: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    """Offset of the data, shape and type of an array in ``.npy`` format of ``size`` bytes in all."""
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, SyntaxError, TypeError, RecursionError, UserWarning) as error:
        raise FeatlensError(f"{where}: not an array in .npy format; write it with numpy.save") from error
    if dtype.hasobject:
        raise FeatlensError(
            f"{where}: holds pickled Python objects, which are not read (they can run code); "
            "save a plain array of numbers"
        )
    if fortran and len(shape) > 1:
        raise FeatlensError(
            f"{where}: is in Fortran order, so an image lies scattered over the file; "
            "save numpy.ascontiguousarray(images)"
        )
    if any(length < 0 for length in shape):
        raise FeatlensError(f"{where}: the header gives the shape {shape}; write it again with numpy.save")
    offset = file.tell()
    expected = offset + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise FeatlensError(
            f"{where}: expected {expected} bytes for {dtype} {shape}, found {size}; "
            f"the file is {'cut off' if size < expected else 'longer than its array'}, write it again"
        )
    return offset, shape, dtype


def open_npy(path: Path) -> Source:
    """Images of an ``.npy`` file, without labels."""
    with reading(str(path)), path.open("rb") as file:
        offset, shape, dtype = _header(file, path.stat().st_size, str(path))
    layout = layout_of(shape, str(path))
    records = Records(Stream.plain(path), offset, shape[0], shape[1:], dtype)
    return Source(path.name, _ArrayReader(records, layout))


def check_member(info: zipfile.ZipInfo, where: str) -> None:
    """Refuse a member of a zip that cannot be read or that says to be larger than it can be."""
    if info.flag_bits & 1:
        raise FeatlensError(f"{where}: is encrypted; pack it again without a password")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FeatlensError(f"{where}: packed in an unusual way; pack it again with deflate or uncompressed")
    # Deflate cannot do better than 1 to 1032.
    if info.file_size > 1032 * info.compress_size + 1024:
        raise FeatlensError(
            f"{where}: says to hold {info.file_size} bytes in {info.compress_size}, which cannot be; "
            "copy or download it again"
        )


def pick(given: str | None, there: list[str], preferred: tuple[str, ...], where: str) -> str:
    """The array that was asked for, or the first of the usual names that is there."""
    if given is not None:
        if given not in there:
            raise UsageError(f"samples: no array {given!r} in {where}: {choices_hint(given, there)}")
        return given
    for key in preferred:
        if key in there:
            return key
    usual = ", ".join(preferred)
    hint = f"name one as {Path(where).name}:KEY, {choices_hint('', there)}" if there else "it is empty"
    raise UsageError(f"samples: none of the arrays {usual} in {where}; {hint}")


def open_npz(path: Path, key: str | None = None) -> Source:
    """Images and labels of an ``.npz`` file."""
    where = str(path)
    with reading(where), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        chosen = pick(key, list(names), IMAGE_KEYS, where)
        offset, shape, dtype = _member(archive, names[chosen], f"{where}:{chosen}")
        layout = layout_of(shape, f"{where}:{chosen}")
        labelled = next((name for name in LABEL_KEYS if name in names and name != chosen), None)
        labels = None
        if labelled is not None:
            labels = _small(archive, names[labelled], shape[0], f"{where}:{labelled}")
    stream = Stream(partial(open_zip, path, names[chosen]), f"{where}:{chosen}", summed=True)
    records = Records(stream, offset, shape[0], shape[1:], dtype)
    reader: Reader = _ArrayReader(records, layout, forwards=True)
    return Source(path.name, reader, labels)


def _member(archive: zipfile.ZipFile, name: str, where: str) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
    info = archive.getinfo(name)
    check_member(info, where)
    with archive.open(info) as file:
        return _header(file, info.file_size, where)


def _small(archive: zipfile.ZipFile, name: str, count: int, where: str) -> NDArray[np.int64]:
    """Labels, read whole after their number is known to be right."""
    _, shape, dtype = _member(archive, name, where)
    check_label_shape(shape, count, where)
    with archive.open(name) as file:
        _header(file, archive.getinfo(name).file_size, where)
        found = np.frombuffer(file.read(), dtype=dtype)
    return checked_labels(found.reshape(shape), count, where)
