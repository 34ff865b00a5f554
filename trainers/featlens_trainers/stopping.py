"""SIGTERM while a loop runs: the state is saved, and the command ends with exit code 0."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

__all__ = ["Stopped", "requested", "running_loop", "stoppable"]


class Stopped(KeyboardInterrupt):
    """Work ended because it was asked to; what was done is saved, and the same command goes on.

    A KeyboardInterrupt, so that nothing that handles errors takes it for one.
    """

    exit_code = 0


class _Request:
    """Whether an end was asked for, and whether a loop runs that will notice."""

    made = False
    loops = 0


def requested() -> bool:
    """Whether an end was asked for."""
    return _Request.made


@contextlib.contextmanager
def running_loop() -> Iterator[None]:
    """Context of a loop that looks at :func:`requested` after every step."""
    _Request.loops += 1
    try:
        yield
    finally:
        _Request.loops -= 1


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Context in which SIGTERM asks a running loop to save and stop; without a loop the work ends at once.

    Does nothing outside the main thread, where signals do not arrive.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        _Request.made = True
        if not _Request.loops:
            raise Stopped("stopped; run the same command again to continue")

    before = signal.signal(signal.SIGTERM, stop)
    _Request.made = False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        _Request.made = False
