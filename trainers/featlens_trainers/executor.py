"""Run jobs with dependencies in parallel processes of one thread; a failure takes its dependants along."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from featlens.errors import FeatlensError, UsageError
from featlens.files import explain_os_error
from featlens_trainers.stopping import Stopped, stoppable

__all__ = ["Job", "Monitor", "Outcome", "run_jobs"]

REPORT_EVERY = 0.25
"""Seconds between progress messages of a worker."""


STATE_PATIENCE = 60.0
"""Seconds to wait for workers that were told to stop to save their state."""


@dataclass(frozen=True)
class Job:
    """One piece of work, after the jobs it needs: ``task(*arguments, report=..., **options)``.

    The task is a function by import. Options stay in this process: workers take arguments alone.
    """

    name: str
    task: Callable[..., None]
    arguments: tuple[Any, ...]
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``done``, ``failed`` or ``skipped``, with the reason."""

    status: str
    message: str = ""
    seconds: float = 0.0


class Monitor(Protocol):
    """Hears what happens; draws the progress bars."""

    def started(self, job: str) -> None:
        """A job has begun."""

    def progress(self, job: str, done: int, total: int, remark: str) -> None:
        """A job has seen ``done`` of ``total`` images."""

    def ended(self, job: str, outcome: Outcome) -> None:
        """A job has ended."""


@dataclass
class _Running:
    process: Any
    connection: Connection
    since: float = field(default_factory=time.monotonic)
    outcome: Outcome | None = None


def run_jobs(
    jobs: Sequence[Job], workers: int, monitor: Monitor, together: bool = False
) -> dict[str, Outcome]:
    """Run all jobs, at most ``workers`` at once, in the order given where dependencies allow.

    With ``workers`` 0 they run one after the other in this process. On KeyboardInterrupt the workers are
    stopped; what they saved stays. Where several processes do the same jobs ``together``, none starts after a
    failure: the others may be in the middle of the job that failed here, and would wait for this process.
    """
    if workers < 0:
        raise UsageError(f"jobs: the number of processes must be at least 0 (0: this process), got {workers}")
    outcomes: dict[str, Outcome] = {}
    waiting = list(jobs)
    _require_startable(waiting)
    if workers == 0:
        while waiting:
            for job in _ready(waiting, outcomes, 1, monitor):
                outcomes[job.name] = _run_here(job, monitor)
                monitor.ended(job.name, outcomes[job.name])
                if together and outcomes[job.name].status == "failed":
                    return outcomes
        return outcomes
    context = _context()
    running: dict[str, _Running] = {}
    try:
        while waiting or running:
            for job in _ready(waiting, outcomes, workers - len(running), monitor):
                running[job.name] = _start(context, job)
                monitor.started(job.name)
            _listen(running, monitor)
            for name in [name for name, worker in running.items() if worker.outcome is not None]:
                worker = running.pop(name)
                worker.process.join()
                assert worker.outcome is not None
                outcomes[name] = worker.outcome
                monitor.ended(name, worker.outcome)
    finally:
        for worker in running.values():
            worker.process.terminate()
        for worker in running.values():
            worker.process.join(STATE_PATIENCE)
    return outcomes


def _require_startable(jobs: Sequence[Job]) -> None:
    """Refuse jobs that could never start: they need one that is not there, or wait for each other."""
    left, startable = list(jobs), set[str]()
    while left:
        free = [job for job in left if startable.issuperset(job.needs)]
        if not free:
            job = left[0]
            raise FeatlensError(
                f"job {job.name!r} can never start: of {', '.join(map(repr, job.needs))}, which it needs, "
                "one is missing or waits for it; give every job that is needed"
            )
        startable |= {job.name for job in free}
        left = [job for job in left if job.name not in startable]


def _ready(waiting: list[Job], outcomes: dict[str, Outcome], free: int, monitor: Monitor) -> list[Job]:
    """Take the jobs that can start now off ``waiting``; those whose needs failed are skipped."""
    out: list[Job] = []
    for job in list(waiting):
        skipped = _skipped(job, outcomes)
        if skipped is not None:
            outcomes[job.name] = skipped
            waiting.remove(job)
            monitor.ended(job.name, skipped)
        elif len(out) < free and all(need in outcomes for need in job.needs):
            out.append(job)
            waiting.remove(job)
    return out


def _skipped(job: Job, outcomes: dict[str, Outcome]) -> Outcome | None:
    broken = [need for need in job.needs if need in outcomes and outcomes[need].status != "done"]
    return Outcome("skipped", f"needs {broken[0]}, which did not finish") if broken else None


def _run_here(job: Job, monitor: Monitor) -> Outcome:
    monitor.started(job.name)
    start = time.monotonic()

    def report(done: int, total: int, remark: str) -> None:
        monitor.progress(job.name, done, total, remark)

    try:
        job.task(*job.arguments, report=report, **job.options)
    except Exception as error:
        return Outcome("failed", _one_line(error), time.monotonic() - start)
    return Outcome("done", seconds=time.monotonic() - start)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError):
        error = explain_os_error(error)
    text = " ".join(str(error).split())
    return text if isinstance(error, FeatlensError) else f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


SINGLE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


def _context() -> Any:
    """Processes that start from one that has imported torch already, where the system has such a thing."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # A process' first optimiser imports torch._dynamo, which takes seconds: here, not in each worker.
    context.set_forkserver_preload(["featlens_trainers.tasks", "featlens_trainers.analysis", "torch._dynamo"])
    return context


def _start(context: Any, job: Job) -> _Running:
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_work, args=(theirs, job.task, job.arguments), name=job.name, daemon=True
    )
    with _environment(SINGLE_THREAD):
        process.start()
    theirs.close()
    return _Running(process, ours)


def _work(connection: Connection, task: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Body of a worker process. It ends by itself when its parent is gone: the next message has no reader."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    last = 0.0

    def report(done: int, total: int, remark: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_EVERY or remark:
            last = now
            try:
                connection.send(("progress", done, total, remark))
            except OSError:
                os._exit(1)

    try:
        with stoppable():
            task(*arguments, report=report)
        message: tuple[Any, ...] = ("done",)
    except Stopped as end:
        message = ("failed", str(end))
    except Exception as error:
        if os.environ.get("FEATLENS_DEBUG"):
            import traceback

            traceback.print_exc(file=sys.stderr)
        message = ("failed", _one_line(error))
    with contextlib.suppress(OSError):
        connection.send(message)


def _listen(running: dict[str, _Running], monitor: Monitor) -> None:
    """Wait a moment for messages and deaths."""
    handles = {worker.connection: (name, worker) for name, worker in running.items()}
    for ready in wait(list(handles), timeout=0.5):
        assert isinstance(ready, Connection)
        name, worker = handles[ready]
        try:
            message = ready.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            code = worker.process.exitcode
            worker.outcome = Outcome("failed", _death(code), time.monotonic() - worker.since)
            continue
        if message[0] == "progress":
            monitor.progress(name, *message[1:])
        else:
            worker.outcome = Outcome(message[0], "".join(message[1:]), time.monotonic() - worker.since)


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory? use fewer --jobs)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}; run the same command again to continue"
    return f"its process ended with code {code}; run the same command again to continue"
