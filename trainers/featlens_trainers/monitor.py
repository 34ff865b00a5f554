"""Progress of a study on stderr: a bar for each running job with images/s and time left, or plain lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from featlens_trainers.executor import Monitor, Outcome

__all__ = ["progress_monitor", "silent_monitor"]

LINE_EVERY = 15.0


@contextlib.contextmanager
def progress_monitor(total: int, stream: TextIO | None = None) -> Iterator[Monitor]:
    """Monitor for ``total`` jobs: bars on a terminal, a line at start, end and every 15 seconds elsewhere."""
    out = stream if stream is not None else sys.stderr
    if not out.isatty():
        yield LineMonitor(total, out)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=out), refresh_per_second=4) as bars:
        yield BarMonitor(total, bars)


@contextlib.contextmanager
def silent_monitor(total: int) -> Iterator[Monitor]:
    """Monitor that says nothing, for all processes but the main one."""
    yield _Silent()


class _Silent:
    def started(self, job: str) -> None:
        pass

    def progress(self, job: str, done: int, total: int, remark: str) -> None:
        pass

    def ended(self, job: str, outcome: Outcome) -> None:
        pass


class _Rates:
    """Images per second of each job since it was first heard of in this session."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def __call__(self, job: str, done: int) -> float:
        since, first = self._first.setdefault(job, (time.monotonic(), done))
        elapsed = time.monotonic() - since
        return (done - first) / elapsed if elapsed > 0.2 else 0.0


class LineMonitor:
    """Plain lines for logs."""

    def __init__(self, total: int, out: TextIO) -> None:
        self._total, self._out, self._ended = total, out, 0
        self._rates = _Rates()
        self._said: dict[str, float] = {}

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def started(self, job: str) -> None:
        """Say nothing yet: a finished job would only make noise."""
        self._said[job] = time.monotonic()

    def progress(self, job: str, done: int, total: int, remark: str) -> None:
        """Say where a job is, now and then."""
        rate = self._rates(job, done)
        now = time.monotonic()
        if now - self._said.get(job, 0.0) < LINE_EVERY:
            return
        self._said[job] = now
        left = f", {(total - done) / rate:,.0f} s left" if rate > 0 else ""
        where = (
            f"{done / max(total, 1):.0%} ({remark})"
            if remark
            else f"{done:,} of {total:,}, {rate:,.0f} images/s"
        )
        self._say(f"{job}: {where}{left}")

    def ended(self, job: str, outcome: Outcome) -> None:
        """Say how it ended."""
        self._ended += 1
        tail = f": {outcome.message}" if outcome.message else f" in {outcome.seconds:.1f} s"
        self._say(f"[{self._ended}/{self._total}] {job} {outcome.status}{tail}")


class BarMonitor:
    """Bars for terminals."""

    def __init__(self, total: int, bars: Any) -> None:
        self._bars, self._rates = bars, _Rates()
        self._whole = bars.add_task("study", total=total, rate="jobs")
        self._tasks: dict[str, Any] = {}

    def started(self, job: str) -> None:
        """Add a bar."""
        self._tasks[job] = self._bars.add_task(job, total=None, rate="")

    def progress(self, job: str, done: int, total: int, remark: str) -> None:
        """Move a bar."""
        rate = remark if remark else f"{self._rates(job, done):,.0f} images/s"
        self._bars.update(self._tasks[job], completed=done, total=total, rate=rate)

    def ended(self, job: str, outcome: Outcome) -> None:
        """Remove the bar; failures stay as a line."""
        if job in self._tasks:
            self._bars.remove_task(self._tasks.pop(job))
        self._bars.advance(self._whole)
        if outcome.status != "done":
            self._bars.console.print(
                f"{job} {outcome.status}: {outcome.message}", markup=False, highlight=False
            )
