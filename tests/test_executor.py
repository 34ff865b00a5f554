"""Jobs with dependencies, in this process and in workers: failures, deaths and interruptions."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.executor import Job, Outcome, run_jobs

# Workers import their task by name, so the tasks of these tests lie in a module of their own.
TASKS = """
import os, signal, sys, time
from pathlib import Path
from featlens.errors import UsageError

def note(folder, name, wait=0.0, report=None):
    with (Path(folder) / "log").open("a") as file:
        file.write(f"start {name}\\n")
    time.sleep(wait)
    with (Path(folder) / "log").open("a") as file:
        file.write(f"end {name}\\n")

def fail(folder, report=None):
    raise UsageError("lr: 0.1 there, 0.2 asked for")

def crash(folder, report=None):
    raise ZeroDivisionError("division by zero\\nin two lines")

def die(folder, report=None):
    os.kill(os.getpid(), signal.SIGKILL)

def leave(folder, report=None):
    os._exit(3)

def count(folder, report=None):
    for done in range(1, 6):
        report(done, 5, f"step {done}")

def hang(folder, report=None):
    report(1, 2, str(os.getpid()))
    time.sleep(60)

def threads(folder, report=None):
    import torch
    (Path(folder) / "threads").write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']}")
"""

ALL_WORKERS = [0, 2]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    name = f"executor_tasks_{os.getpid()}"
    (tmp_path / f"{name}.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop(name, None)
    return importlib.import_module(name)


class Heard:
    """A monitor that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.said: list[tuple[str, int, int, str]] = []
        self.over: list[tuple[str, Outcome]] = []

    def started(self, job: str) -> None:
        self.begun.append(job)

    def progress(self, job: str, done: int, total: int, remark: str) -> None:
        self.said.append((job, done, total, remark))

    def ended(self, job: str, outcome: Outcome) -> None:
        self.over.append((job, outcome))


def log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


def told(outcomes: dict[str, Outcome]) -> dict[str, tuple[str, str]]:
    return {name: (outcome.status, outcome.message) for name, outcome in outcomes.items()}


def gone(pid: int, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


# --- order and dependencies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_a_job_starts_after_all_it_needs_whatever_the_order_given(tmp_path, tasks, workers: int) -> None:
    jobs = [
        Job("d", tasks.note, (tmp_path, "d"), ("b", "c")),
        Job("b", tasks.note, (tmp_path, "b"), ("a",)),
        Job("c", tasks.note, (tmp_path, "c", 0.1), ("a",)),
        Job("a", tasks.note, (tmp_path, "a", 0.1)),
    ]
    heard = Heard()
    outcomes = run_jobs(jobs, workers, heard)
    assert told(outcomes) == dict.fromkeys("abcd", ("done", ""))
    lines = log(tmp_path)
    assert sorted(lines) == sorted(f"{when} {name}" for name in "abcd" for when in ("start", "end"))
    for job in jobs:
        for need in job.needs:
            assert lines.index(f"end {need}") < lines.index(f"start {job.name}")
    assert sorted(heard.begun) == sorted(name for name, _ in heard.over) == list("abcd")
    assert all(outcome.seconds > 0 for outcome in outcomes.values())


def test_independent_jobs_run_at_the_same_time_but_no_more_than_the_workers(tmp_path, tasks) -> None:
    run_jobs([Job(name, tasks.note, (tmp_path, name, 0.4)) for name in "abc"], 2, Heard())
    at_once, most = 0, 0
    for line in log(tmp_path):
        at_once += 1 if line.startswith("start") else -1
        most = max(most, at_once)
    assert most == 2
    assert log(tmp_path)[0] in ("start a", "start b")


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_jobs_that_can_never_start_are_refused_before_any_work(tmp_path, tasks, workers: int) -> None:
    first = Job("a", tasks.note, (tmp_path, "a"))
    missing = Job("b", tasks.note, (tmp_path, "b"), ("nothing",))
    circle = [Job("x", tasks.note, (tmp_path, "x"), ("y",)), Job("y", tasks.note, (tmp_path, "y"), ("x",))]
    with pytest.raises(FeatlensError, match="job 'b' can never start: of 'nothing', which it needs"):
        run_jobs([first, missing], workers, Heard())
    with pytest.raises(FeatlensError, match="job 'x' can never start"):
        run_jobs([first, *circle], workers, Heard())
    assert log(tmp_path) == []


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_nothing_to_do_is_done(workers: int) -> None:
    assert run_jobs([], workers, Heard()) == {}


def test_a_negative_number_of_workers_is_refused(tmp_path: Path, tasks) -> None:
    with pytest.raises(UsageError, match=r"must be at least 0 .*, got -1"):
        run_jobs([Job("a", tasks.note, (tmp_path, "a"))], -1, Heard())
    assert log(tmp_path) == []


# --- failures -----------------------------------------------------------------------------------------------


def test_a_failure_takes_its_dependants_along_and_nothing_else(tmp_path, tasks) -> None:
    jobs = [
        Job("bad", tasks.fail, (tmp_path,)),
        Job("after bad", tasks.note, (tmp_path, "after bad"), ("good", "bad")),
        Job("last", tasks.note, (tmp_path, "last"), ("after bad",)),
        Job("good", tasks.note, (tmp_path, "good")),
        Job("crash", tasks.crash, (tmp_path,)),
        Job("after good", tasks.note, (tmp_path, "after good"), ("good",)),
    ]
    found = {}
    for workers in ALL_WORKERS:
        heard = Heard()
        found[workers] = told(run_jobs(jobs, workers, heard))
        assert sorted(name for name, _ in heard.over) == sorted(job.name for job in jobs)
        assert "last" not in heard.begun
    assert found[0] == found[2]
    assert found[0] == {
        "bad": ("failed", "lr: 0.1 there, 0.2 asked for"),
        "after bad": ("skipped", "needs bad, which did not finish"),
        "last": ("skipped", "needs after bad, which did not finish"),
        "good": ("done", ""),
        "crash": ("failed", "ZeroDivisionError: division by zero in two lines"),
        "after good": ("done", ""),
    }
    assert "start after bad" not in log(tmp_path)


def test_together_with_other_processes_nothing_starts_after_a_failure(tmp_path, tasks) -> None:
    """The others are still in the job that failed here; another would wait for them, and they for this."""
    jobs = [Job("bad", tasks.fail, (tmp_path,)), Job("good", tasks.note, (tmp_path, "good"))]
    heard = Heard()
    assert set(run_jobs(jobs, 0, heard, together=True)) == {"bad"}
    assert heard.begun == ["bad"]


def test_a_killed_worker_is_reported_in_one_line_and_the_others_finish(tmp_path, tasks) -> None:
    jobs = [
        Job("killed", tasks.die, (tmp_path,)),
        Job("left", tasks.leave, (tmp_path,)),
        Job("needs killed", tasks.note, (tmp_path, "x"), ("killed",)),
        Job("slow", tasks.note, (tmp_path, "slow", 0.5)),
    ]
    found = told(run_jobs(jobs, 3, Heard()))
    assert found["killed"] == (
        "failed",
        "its process was ended by SIGKILL (out of memory? use fewer --jobs); "
        "run the same command again to continue",
    )
    assert found["left"] == (
        "failed",
        "its process ended with code 3; run the same command again to continue",
    )
    assert found["needs killed"][0] == "skipped"
    assert found["slow"] == ("done", "")


# --- progress -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ALL_WORKERS)
def test_the_monitor_hears_every_remark_in_order(tmp_path, tasks, workers: int) -> None:
    heard = Heard()
    run_jobs([Job("a", tasks.count, (tmp_path,))], workers, heard)
    assert heard.said == [("a", done, 5, f"step {done}") for done in range(1, 6)]
    assert [name for name, _ in heard.over] == ["a"]


def test_workers_have_one_thread_and_leave_our_environment_alone(tmp_path, tasks, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert told(run_jobs([Job("a", tasks.threads, (tmp_path,))], 1, Heard()))["a"] == ("done", "")
    assert (tmp_path / "threads").read_text().split()[0] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


# --- interruption -------------------------------------------------------------------------------------------


class Interrupting(Heard):
    """Presses Ctrl-C as soon as a worker has said its process number."""

    def progress(self, job: str, done: int, total: int, remark: str) -> None:
        super().progress(job, done, total, remark)
        if len(self.said) == 2:
            raise KeyboardInterrupt


def test_ctrl_c_stops_the_workers(tmp_path: Path, tasks) -> None:
    heard = Interrupting()
    start = time.monotonic()
    jobs = [Job(name, tasks.hang, (tmp_path,)) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, heard)
    assert time.monotonic() - start < 30
    workers = [int(remark) for *_, remark in heard.said]
    assert len(workers) == 2
    assert all(gone(pid) for pid in workers)
    assert heard.over == []


def test_ctrl_c_ends_work_in_this_process_too(tmp_path: Path, tasks) -> None:
    class Now(Heard):
        def progress(self, job: str, done: int, total: int, remark: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("a", tasks.count, (tmp_path,)), Job("b", tasks.note, (tmp_path, "b"))], 0, Now())
    assert log(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_workers_end_by_themselves_when_their_parent_is_killed(tmp_path: Path, tasks, python) -> None:
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(tmp_path)!r})
import multiprocessing
import {tasks.__name__} as tasks
from featlens_trainers import executor
from featlens_trainers.executor import Job, run_jobs

# As in earnest, but for the imports made beforehand, which take long.
executor._context = lambda: multiprocessing.get_context("forkserver")

class Monitor:
    def started(self, job): pass
    def ended(self, job, outcome): pass
    def progress(self, job, done, total, remark):
        print(remark, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    run_jobs([Job("a", tasks.forever, ())], 1, Monitor())
"""
    with (tmp_path / f"{tasks.__name__}.py").open("a") as file:
        file.write(
            "\ndef forever(report=None):\n"
            "    while True:\n        report(1, 2, str(os.getpid()))\n        time.sleep(0.05)\n"
        )
    ended = python(script)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert gone(int(ended.stdout.split()[0]))
