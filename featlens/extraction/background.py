"""Writing beside the forward pass: a thread with a bounded queue, so that nobody waits for the disk."""

from __future__ import annotations

import contextlib
import queue
import threading
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError
from featlens.extraction.runner import Batch
from featlens.store import FeatureWriter

__all__ = ["BackgroundWriter"]

DEPTH = 2
"""Blocks that may wait; a disk that is slower than the model ends up setting the pace."""


class BackgroundWriter:
    """Appends blocks in the order in which they are put; what went wrong is raised by the next call.

    On the way out, also after Ctrl-C, the blocks that wait are still written: they are whole. A second
    Ctrl-C leaves them out; the block under way is always finished, so that nothing is written afterwards.
    """

    def __init__(self, writer: FeatureWriter, sigmas: tuple[float, ...], first: int = 0) -> None:
        self._writer, self._sigmas, self._first = writer, sigmas, first
        self._queue: queue.Queue[tuple[int, int, list[Batch]] | None] = queue.Queue(DEPTH)
        self._error: BaseException | None = None
        self._failed, self._ended = False, threading.Event()
        self._thread = threading.Thread(target=self._work, name="featlens-writer", daemon=True)

    def put(self, sigma_index: int, start: int, batches: list[Batch]) -> None:
        """Hand over the batches of whole blocks, which begin at row ``start`` of the file."""
        self._raise()
        self._queue.put((sigma_index, start, batches))

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        interrupt = None
        while not self._ended.is_set():
            try:
                # Not join: interrupted, it takes a thread that runs for one that has ended.
                with contextlib.suppress(queue.Full):
                    self._queue.put(None, timeout=0.1)
                    self._ended.wait()
            except KeyboardInterrupt as again:
                interrupt, self._failed = again, True
        if interrupt is not None:
            raise interrupt
        if value is None:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._failed:
                continue  # Emptied, so that put never blocks on a writer that has given up.
            try:
                self._append(*item)
            except BaseException as error:
                self._error, self._failed = error, True
        self._ended.set()

    def _append(self, sigma_index: int, start: int, batches: list[Batch]) -> None:
        parts = [batch.arrays() for batch in batches]
        block = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        _require_finite(block, self._sigmas[sigma_index], self._first + start)
        self._writer.append(sigma_index, block)


def _require_finite(block: dict[str, NDArray[np.float32]], sigma: float, first: int) -> None:
    for site, values in block.items():
        # The sum is finite unless a value is not, or it overflows: only then every value is looked at.
        if np.isfinite(values.sum(dtype=np.float64)):
            continue
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            row = first + int(np.argmax(bad))
            raise FeatlensError(
                f"extract: features of site {site!r} at sigma {sigma:g} are not finite in sample row {row}; "
                "the model has diverged, or the reduction overflows"
            )
