"""Centred features of many sites in blocks of rows: kept in memory where they fit, else read again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.device import Device
from featlens.comparison.request import Handle
from featlens.errors import UsageError

__all__ = ["Rows", "gather", "require_finite", "squared_norms"]


def require_finite(block: NDArray[Any], label: str, start: int = 0) -> None:
    """Refuse NaN and infinity, naming site and row."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = block.sum(dtype=np.float64)
    if not np.isfinite(total):
        bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
        if len(bad):
            raise UsageError(
                f"row {start + int(bad[0])} of {label} holds NaN or infinity ({len(bad)} such rows in "
                f"rows {start}..{start + len(block)}); leave the site out with --sites, or extract again"
            )


def squared_norms(block: NDArray[Any]) -> NDArray[np.float64]:
    """(rows,) added up in float64, because what debiasing leaves of them may be a small part."""
    with np.errstate(over="ignore"):
        return np.asarray(np.einsum("ij,ij->i", block, block, dtype=np.float64))


class Rows:
    """Blocks of centred features, scaled so that the largest entry of a site is about 1.

    Parameters
    ----------
    handles
        Sites.
    n
        Number of samples.
    size
        Rows of a block.
    dtype
        ``"float32"`` or ``"float64"``: of the blocks. Means and norms are float64 always.
    device
        Where the blocks go.
    memory
        Bytes that may be kept.
    order
        The rows to use, in this order; all if None.

    Attributes
    ----------
    norms
        (H, n) float64 squared norms of the centred, scaled rows.
    scales
        What the centred features of each site were divided by.
    """

    def __init__(
        self,
        handles: Sequence[Handle],
        n: int,
        size: int,
        dtype: str,
        device: Device,
        memory: float,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        self.handles, self.n, self.size, self.dtype, self.device = handles, n, size, dtype, device
        self.starts = list(range(0, n, size))
        wanted = sum(handle.width for handle in handles) * n * np.dtype(dtype).itemsize
        self.keeps = wanted <= memory
        self.order = order
        self._kept: dict[tuple[int, int], Any] = {}
        self._panel: tuple[int, dict[int, Any]] = (-1, {})
        self._origin: list[NDArray[Any]] = []
        self._mean: list[NDArray[np.float64]] = []
        self.scales: list[float] = []
        self.norms = np.empty((len(handles), n))
        for index in range(len(handles)):
            self._measure(index)

    def _measure(self, index: int) -> None:
        """Mean and scale of a site, and its blocks where they are kept."""
        handle = self.handles[index]
        whole = self._read(index, 0, self.n) if self.keeps else None
        self._origin.append((self._read(index, 0, 1) if whole is None else whole[:1])[0].copy())
        self._mean.append(np.zeros(handle.width))
        self.scales.append(1.0)
        blocks = {}
        total = np.zeros(handle.width)
        for number, (start, stop) in enumerate(self._bounds()):
            raw = self._read(index, start, stop) if whole is None else whole[start:stop]
            with np.errstate(over="ignore", invalid="ignore"):
                block = raw - self._origin[index]
                sums = block.sum(axis=0)
            if not np.isfinite(sums).all():
                require_finite(raw, handle.label, start)
                sums = block.astype(np.float64).sum(axis=0)
            total += sums
            if self.keeps:
                blocks[number] = block
        self._mean[index] = total / self.n
        largest = 0.0
        for number, (start, stop) in enumerate(self._bounds()):
            block = self._shifted(index, blocks.pop(number, None), start, stop)
            squares = squared_norms(block)
            self.norms[index, start:stop] = squares
            if self.keeps:
                blocks[number] = block
            if not 1e-6 < float(squares.max()) < 1e12:
                largest = max(largest, float(np.abs(block).max()))
            else:
                largest = max(largest, 1.0)
        if largest > 0 and not 1e-3 < largest < 1e3:
            self._rescale(index, largest, blocks)
        for number, block in blocks.items():
            self._kept[index, number] = self.device.put(block.astype(self.dtype, copy=False))

    def _shifted(self, index: int, block: NDArray[Any] | None, start: int, stop: int) -> NDArray[Any]:
        if block is None:
            block = self._read(index, start, stop) - self._origin[index]
        block -= self._mean[index].astype(block.dtype)
        return block

    def _rescale(self, index: int, largest: float, blocks: dict[int, NDArray[Any]]) -> None:
        """Bring entries to about 1, so that their squares can be summed in float32."""
        self.scales[index] = largest
        for number, (start, stop) in enumerate(self._bounds()):
            block = self._shifted(index, None, start, stop) if number not in blocks else blocks[number]
            block /= block.dtype.type(largest)
            self.norms[index, start:stop] = squared_norms(block)

    def _bounds(self) -> list[tuple[int, int]]:
        return [(start, min(start + self.size, self.n)) for start in self.starts]

    def _read(self, index: int, start: int, stop: int) -> NDArray[Any]:
        if self.order is None:
            raw = np.asarray(self.handles[index].read(start, stop))
        else:
            raw = gather(self.handles[index], self.order[start:stop])
        return raw.astype(np.result_type(raw, self.dtype), copy=False)

    def _centred(self, index: int, start: int, stop: int) -> NDArray[Any]:
        # The mean of n equal numbers may differ from them by rounding; differences of equal numbers are zero.
        # The difference of two float32 numbers has a relative error of one rounding, however large both are.
        block = self._shifted(index, None, start, stop)
        if self.scales[index] != 1:
            block /= block.dtype.type(self.scales[index])
        return block.astype(self.dtype, copy=False)

    def block(self, index: int, number: int) -> Any:
        """Rows of block ``number`` of a site, on the device."""
        if self.keeps:
            return self._kept[index, number]
        if self._panel[0] == number and index in self._panel[1]:
            return self._panel[1][index]
        start = self.starts[number]
        return self.device.put(self._centred(index, start, min(start + self.size, self.n)))

    def hold(self, number: int) -> None:
        """Keep one block of all sites until another is held."""
        if not self.keeps and self._panel[0] != number:
            self._panel = (-1, {})
            self._panel = (number, {index: self.block(index, number) for index in range(len(self.handles))})


def gather(handle: Handle, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Chosen rows of a site in the order asked for, read block by block."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    out: NDArray[Any] | None = None
    step = max(1, (1 << 22) // handle.width)
    for low in range(int(ordered[0]), int(ordered[-1]) + 1, step):
        first, last = np.searchsorted(ordered, (low, low + step))
        if first == last:
            continue
        block = handle.read(low, int(ordered[last - 1]) + 1)
        if out is None:
            out = np.empty((len(rows), handle.width), dtype=block.dtype)
        out[order[first:last]] = block[ordered[first:last] - low]
    return np.empty((0, handle.width)) if out is None else out
