"""Images that are indexed like an array and read at that moment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.sources.pixels import Pixels
from featlens.sources.source import Reader

__all__ = ["BLOCK_BYTES", "HELD_BYTES", "LazyImages", "NoImages", "block_rows"]

BLOCK_BYTES = 8 * 2**20
"""Size of the blocks of converted pixels in which images are read through."""

HELD_BYTES = 64 * 2**20
"""Raw pixels up to this size are read once and kept."""


def block_rows(shape: tuple[int, ...]) -> int:
    """Images (N, ...) of the given shape that make a block of at most 8 MiB in float32; at least one.

    >>> block_rows((50_000, 3, 32, 32))
    682
    """
    return max(1, BLOCK_BYTES // (4 * max(1, math.prod(shape[1:]))))


class _Images:
    """What both kinds have in common with an array."""

    dtype = np.dtype(np.float32)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        first, *rest = key if isinstance(key, tuple) and key else (key,)
        if first is Ellipsis or isinstance(first, tuple):
            return np.asarray(self._rows(np.arange(len(self)))[key])
        rows = np.arange(len(self))[first]
        found = self._rows(np.atleast_1d(rows).reshape(-1)).reshape(*np.shape(rows), *self.shape[1:])
        inner = (*[slice(None)] * np.ndim(rows), *rest)
        return np.asarray(found[inner]) if rest else found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = self[:]
        return found if dtype is None else found.astype(dtype)

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.shape}"


class NoImages(_Images):
    """Zeros that take no memory, (N, C, H, W): samples that consist of noise alone.

    >>> NoImages((5, 1, 2, 2))[1:3].shape
    (2, 1, 2, 2)
    """

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.zeros((len(rows), *self.shape[1:]), dtype=np.float32)


class LazyImages(_Images):
    """Images (N, C, H, W) float32 of a source, read when they are indexed.

    Indexed along the first axis as an array: numbers, slices, arrays of numbers or booleans.

    Parameters
    ----------
    reader
        Raw pixels of the source.
    ids
        (N,) numbers of the images.
    pixels
        How raw numbers become pixels.
    """

    def __init__(self, reader: Reader, ids: NDArray[np.int64], pixels: Pixels) -> None:
        super().__init__((len(ids), *reader.shape[1:]))
        self.pixels = pixels
        self._reader, self._ids = reader, ids
        self._raw: NDArray[Any] | None = None

    @property
    def recipe(self) -> bytes | None:
        """What the pixels depend on besides their numbers, if they are drawn and not read."""
        found: bytes | None = getattr(self._reader, "recipe", None)
        return found

    @property
    def forwards(self) -> bool:
        """Whether rows are only quick to read in their order, as in compressed files."""
        return bool(getattr(self._reader, "forwards", False)) and not self.held

    @property
    def held(self) -> bool:
        """Whether the raw pixels are in memory."""
        return self._raw is not None

    def hold(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read the raw pixels into memory if they take at most 64 MiB; else leave them where they are."""
        size = math.prod(self.shape) * self._reader.dtype.itemsize
        if self.held or size > HELD_BYTES:
            return
        raw = np.empty(self.shape, dtype=self._reader.dtype)
        step = block_rows(self.shape)
        for start in range(0, len(self), step):
            block = slice(start, min(start + step, len(self)))
            raw[block] = self._reader.read(self._ids[block])
            if progress is not None:
                progress(block.stop, len(self))
        self._raw = raw
        self._reader.close()

    def close(self) -> None:
        """Give back the file handle; it is opened again when needed."""
        self._reader.close()

    def raw(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Stored numbers of the given rows, (len(rows), C, H, W)."""
        return self._reader.read(self._ids[rows]) if self._raw is None else self._raw[rows]

    def _rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        out = np.empty((len(rows), *self.shape[1:]), dtype=np.float32)
        step = block_rows(self.shape)
        for start in range(0, len(rows), step):
            out[start : start + step] = self.pixels.convert(self.raw(rows[start : start + step]))
        return out
