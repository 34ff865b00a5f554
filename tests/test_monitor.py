"""Progress of a study, as lines for logs and as bars on a terminal."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from featlens.cli.progress import progress_bar
from featlens_trainers import monitor as monitors
from featlens_trainers.executor import Job, Outcome, run_jobs
from featlens_trainers.monitor import BarMonitor, LineMonitor, progress_monitor


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(monitors, "time", made)
    return made


# --- lines --------------------------------------------------------------------------------------------------


def test_a_line_tells_stage_rate_and_time_left(clock: Clock) -> None:
    out = io.StringIO()
    heard = LineMonitor(2, out)
    heard.started("teacher")
    heard.progress("teacher", 1_000, 51_000, "")
    clock.now += 20
    heard.progress("teacher", 11_000, 51_000, "")
    assert out.getvalue() == "teacher: 11,000 of 51,000, 500 images/s, 80 s left\n"


def test_lines_are_rare(clock: Clock) -> None:
    out = io.StringIO()
    heard = LineMonitor(2, out)
    heard.started("teacher")
    for second in range(60):
        clock.now += 1
        heard.progress("teacher", 100 * second, 6_000, "")
    assert len(out.getvalue().splitlines()) == 4


def test_a_resumed_job_is_timed_from_where_it_resumed(clock: Clock) -> None:
    out = io.StringIO()
    heard = LineMonitor(1, out)
    heard.started("teacher")
    heard.progress("teacher", 40_000, 50_000, "")
    clock.now += 20
    heard.progress("teacher", 42_000, 50_000, "")
    assert "100 images/s, 80 s left" in out.getvalue()


def test_work_that_is_not_counted_in_images_is_told_by_its_remark(clock: Clock) -> None:
    out = io.StringIO()
    heard = LineMonitor(1, out)
    heard.started("analyse teacher")
    heard.progress("analyse teacher", 0, 100, "extract")
    clock.now += 20
    heard.progress("analyse teacher", 40, 100, "probe")
    assert out.getvalue() == "analyse teacher: 40% (probe), 30 s left\n"


def test_the_end_of_every_job_is_told() -> None:
    out = io.StringIO()
    heard = LineMonitor(3, out)
    heard.ended("teacher", Outcome("done", seconds=12.34))
    heard.ended("student", Outcome("failed", "the loss became nan"))
    heard.ended("analysis", Outcome("skipped", "needs student, which did not finish"))
    assert out.getvalue().splitlines() == [
        "[1/3] teacher done in 12.3 s",
        "[2/3] student failed: the loss became nan",
        "[3/3] analysis skipped: needs student, which did not finish",
    ]


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    out = io.StringIO()
    with progress_monitor(1, out) as heard:
        heard.started("teacher")
        heard.progress("teacher", 1, 2, "")
        heard.ended("teacher", Outcome("done", seconds=1.0))
    assert out.getvalue() == "[1/1] teacher done in 1.0 s\n"


# --- bars ---------------------------------------------------------------------------------------------------


def shown(console: Console, bars: Progress) -> str:
    with console.capture() as capture:
        console.print(bars.get_renderable())
    return capture.get()


def test_bars_show_jobs_and_their_rate(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bars = Progress(
        TextColumn("{task.description}|{task.percentage:.0f}|{task.fields[rate]}"), console=console
    )
    heard = BarMonitor(4, bars)
    heard.started("teacher")
    heard.progress("teacher", 0, 1_000, "")
    clock.now += 2
    heard.progress("teacher", 500, 1_000, "")
    assert "teacher|50|250 images/s" in shown(console, bars)
    heard.progress("teacher", 1_000, 1_000, "sampling")
    assert "teacher|100|sampling" in shown(console, bars)
    heard.ended("teacher", Outcome("done"))
    assert "study|25|jobs" in shown(console, bars) and "teacher" not in shown(console, bars)


def test_a_terminal_gets_bars_and_keeps_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    with progress_monitor(3, out) as heard:
        assert isinstance(heard, BarMonitor)
        for job in ("teacher", "student [x]"):
            heard.started(job)
            heard.progress(job, 10, 100, "")
        heard.ended("teacher", Outcome("done"))
        heard.ended("student [x]", Outcome("failed", "it [bold]broke[/bold] at [/tmp]"))
        heard.ended("never begun", Outcome("skipped", "needs student"))
    text = out.getvalue()
    assert "student [x] failed: it [bold]broke[/bold] at [/tmp]" in text
    assert "never begun skipped: needs student" in text and "teacher" in text


def work(count: int, report: Any) -> None:
    for done in range(count):
        report(done, count, "")
    if count == 3:
        raise ValueError("three is too many")


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_whole_run_is_heard(stream: type[io.StringIO]) -> None:
    out = stream()
    jobs = [Job("two", work, (2,)), Job("three", work, (3,)), Job("after", work, (1,), needs=("three",))]
    with progress_monitor(len(jobs), out) as heard:
        outcomes = run_jobs(jobs, 0, heard)
    assert [outcome.status for outcome in outcomes.values()] == ["done", "failed", "skipped"]
    assert "three failed: ValueError: three is too many" in out.getvalue()
    assert "after skipped: needs three" in out.getvalue()


# --- single tasks -------------------------------------------------------------------------------------------


def test_one_task_as_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from featlens.cli import progress

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress_bar("extract teacher", "rows") as update:
        for second in range(25):
            clock.now += 1
            update(1_000 * second, 25_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "extract teacher: 9,000 of 25,000 rows, 900/s",
        "extract teacher: 19,000 of 25,000 rows, 950/s",
    ]


def test_one_task_as_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress_bar("compare") as update:
        update(1, 2)
        update(2, 2)
    assert "compare" in out.getvalue()
