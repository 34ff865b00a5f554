"""A progress bar on stderr for one task; plain lines now and then where stderr is no terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["progress_bar"]

EVERY = 10.0
"""Seconds between lines where stderr is no terminal."""


@contextlib.contextmanager
def progress_bar(stage: str, unit: str = "rows") -> Iterator[Callable[[int, int], None]]:
    """Yield ``update(done, total)``; shows stage, rate and time left."""
    if not sys.stderr.isatty():
        yield _lines(stage, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(stage, total=None, rate="")
        start = time.monotonic()
        first: list[int] = []

        def update(done: int, total: int) -> None:
            if not first:
                first.append(done)
            rate = (done - first[0]) / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")

        yield update


def _lines(stage: str, unit: str) -> Callable[[int, int], None]:
    start = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            rate = done / (now - start)
            print(f"{stage}: {done:,} of {total:,} {unit}, {rate:,.0f}/s", file=sys.stderr, flush=True)  # noqa: T201

    return update
