"""What numbers a source holds, and how they become float32 in [-1, 1]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError, UsageError, choices_hint

__all__ = ["VALUES", "Pixels"]

VALUES = ("[-1,1]", "[0,1]", "[0,255]", "any")

_TOLERANCE = 1e-3

# pixel = number * scale + shift, in double precision: all formats of the same images give the same bits.
_SCALES = {"[-1,1]": (1.0, 0.0), "any": (1.0, 0.0), "[0,1]": (2.0, -1.0), "[0,255]": (1 / 127.5, -1.0)}


class Pixels:
    """How raw numbers become pixels, and whether they are what they are said to be.

    Parameters
    ----------
    name
        Name of the source in messages.
    dtype
        Type of the raw numbers.
    values
        One of :data:`VALUES`, or None: 8 bits are 0 to 255, floats -1 to 1, booleans -1 and 1.

    Raises
    ------
    UsageError
        No such range, or a type that does not fit it.

    Examples
    --------
    >>> Pixels("x.npy", np.dtype("uint8"), None).convert(np.array([0, 255], dtype=np.uint8))
    array([-1.,  1.], dtype=float32)
    """

    def __init__(self, name: str, dtype: np.dtype[Any], values: str | None = None) -> None:
        self.name, self.dtype, self.given = name, dtype, values
        if values is not None:
            values = values.replace(" ", "")
            if values not in VALUES:
                raise UsageError(f"samples: unknown values {values!r}: {choices_hint(values, VALUES)}")
        if dtype.kind not in "biuf":
            raise UsageError(
                f"samples: {name} holds {dtype}, expected numbers; save the pixels as uint8 or float32"
            )
        if dtype.kind == "b" and values in ("[-1,1]", "[0,255]"):
            raise UsageError(f"samples: {name} holds booleans, not numbers in {values}; leave values out")
        if values is None and dtype.kind in "iu" and dtype != np.uint8:
            raise UsageError(
                f"samples: {name} holds {dtype}, which says nothing about the range of its pixels; save them "
                "as uint8, or say what they are with values='[0,255]', '[0,1]' or 'any'"
            )
        self.values = values or {"b": "[0,1]", "f": "[-1,1]"}.get(dtype.kind, "[0,255]")
        self._scale, self._shift = _SCALES[self.values]
        self._table = self._scaled(np.arange(256)) if dtype == np.uint8 else None

    def convert(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        """Pixels of raw numbers, float32 of the same shape."""
        if self._table is not None:
            return np.asarray(self._table[raw], dtype=np.float32)
        return self._scaled(raw)

    def _scaled(self, raw: NDArray[Any]) -> NDArray[np.float32]:
        # What overflows becomes infinite and is refused as such, with the number of its image.
        with np.errstate(over="ignore", invalid="ignore"):
            if self._scale == 1:
                return raw.astype(np.float32)
            if self.values == "[0,255]":
                return np.asarray(raw / np.float64(127.5) - 1, dtype=np.float32)
            return np.asarray(raw * np.float64(self._scale) + self._shift, dtype=np.float32)

    def check(self, block: NDArray[np.float32], start: int, ids: NDArray[np.int64]) -> None:
        """Refuse converted pixels outside [-1, 1], naming the first image that has some.

        ``block`` are the rows from ``start`` on; ``ids`` are the numbers of all rows.
        """
        if self.values == "any" or (float(block.min()) >= -1 and float(block.max()) <= 1):
            return
        flat = block.reshape(len(block), -1)
        lows, highs = flat.min(axis=1), flat.max(axis=1)
        bad = (lows < -1 - _TOLERANCE) | (highs > 1 + _TOLERANCE)
        if not bad.any():
            return
        row = int(np.argmax(bad))
        low, high = self._undone(float(lows.min())), self._undone(float(highs.max()))
        raise FeatlensError(
            f"samples: {self.name} holds numbers from {low:.6g} to {high:.6g} (image {ids[start + row]}), "
            f"expected {self.values}; {self._advice(low, high)}"
        )

    def _undone(self, pixel: float) -> float:
        return (pixel - self._shift) / self._scale

    def _advice(self, low: float, high: float) -> str:
        fitting = "[0,1]" if low >= 0 and high <= 1 + _TOLERANCE else "[0,255]"
        if low >= 0 and high <= 255.5 and fitting != self.values:
            return f"say what they are with values={fitting!r}"
        return "scale them to [-1, 1], or take them as they are with values='any'"

    def judge(self, low: float, high: float) -> None:
        """Refuse a range of converted pixels that is hardly what the type promises, unless it was said."""
        if self.given is not None or self.dtype.kind == "b":
            return
        if self.dtype.kind == "f" and low >= 0:
            raise FeatlensError(
                f"samples: {self.name} holds floats from {low:.6g} to {high:.6g}, nothing below 0, expected "
                "[-1, 1]; say what they are with values='[0,1]' (or '[-1,1]' if they are)"
            )
        if self.dtype == np.uint8 and self._undone(high) < 1.5:
            raise FeatlensError(
                f"samples: {self.name} holds only 0 and 1 in 8 bits, expected 0 to 255; say what they are "
                "with values='[0,1]' (or '[0,255]' if they are)"
            )
