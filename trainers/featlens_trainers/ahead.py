"""Images that a thread reads before they are asked for."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from featlens.samples import SampleSet

__all__ = ["ReadAhead"]

PATIENCE = 1.0
"""Seconds for which the end of the data, or of the interpreter, waits for a read that hangs."""

Key = tuple[str, bytes]
"""Row numbers: their type and bytes."""


class ReadAhead:
    """Images of a sample set by row, read now or, where they were planned, by a thread beforehand.

    The thread lives while there is something to read, and no longer than this object. A copy that is pickled
    begins without plans, and so does a forked process.
    """

    def __init__(self, samples: SampleSet) -> None:
        self._samples = samples
        self._reading = _Reading(samples)
        self.plan, self.take = self._reading.plan, self._reading.take
        # Also called when the interpreter ends, before a thread in the middle of a read could do harm.
        weakref.finalize(self, self._reading.end)

    def __reduce__(self) -> tuple[type[ReadAhead], tuple[SampleSet]]:
        return ReadAhead, (self._samples,)


class _Reading:
    """What a :class:`ReadAhead` shares with its thread, which lives as long as there is something to read."""

    def __init__(self, samples: SampleSet) -> None:
        self._samples = samples
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        # Entered again where the collection of garbage ends another object in the middle of a block.
        self._lock = threading.RLock()
        # Not every source stands two readers at once.
        self._turn = threading.Lock()
        self._plans: list[list[Key]] = []
        self._waiting: dict[Key, Future[NDArray[np.float32]]] = {}
        self._todo: deque[tuple[NDArray[np.int64], Future[NDArray[np.float32]]]] = deque()
        self._thread: threading.Thread | None = None

    def plan(self, parts: Sequence[NDArray[np.int64]]) -> None:
        """Have parts read; of earlier plans only the last is kept."""
        self._after_fork()
        keys = [_key(part) for part in parts]
        with self._lock:
            self._plans = [*self._plans[-1:], keys]
            kept = {key for plan in self._plans for key in plan}
            for key in [key for key in self._waiting if key not in kept]:
                self._waiting.pop(key).cancel()
            for key, part in zip(keys, parts, strict=True):
                if key not in self._waiting:
                    self._waiting[key] = Future()
                    self._todo.append((part.copy(), self._waiting[key]))
            if self._todo and self._thread is None:
                thread = threading.Thread(target=self._work, name="featlens-data", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # No thread is to be had: everything is read when it is asked for.
                    self._forget()
                else:
                    self._thread = thread

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Images of the given rows, waited for if they were planned, else read now."""
        self._after_fork()
        with self._lock:
            planned = self._waiting.pop(_key(rows), None)
        return self._read(rows) if planned is None else planned.result()

    def end(self) -> None:
        """Forget what waits; the read at hand is waited for, but not for long."""
        if self._process != os.getpid():
            return
        with self._lock:
            self._forget()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def _forget(self) -> None:
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
        self._todo.clear()

    def _after_fork(self) -> None:
        if self._process != os.getpid():
            # Locks may be held by a thread that does not exist here.
            self._begin()

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._turn:
            return np.ascontiguousarray(self._samples.images[rows])

    def _work(self) -> None:
        while True:
            with self._lock:
                try:
                    rows, future = self._todo.popleft()
                except IndexError:
                    self._thread = None
                    return
            if future.set_running_or_notify_cancel():
                self._fulfil(rows, future)

    def _fulfil(self, rows: NDArray[np.int64], future: Future[NDArray[np.float32]]) -> None:
        try:
            images = self._read(rows)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(images)


def _key(rows: NDArray[np.int64]) -> Key:
    return rows.dtype.str, rows.tobytes()
