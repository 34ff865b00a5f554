"""Run folders: whom they belong to, what they keep, and that training goes on exactly after any end."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from featlens.errors import FeatlensError, UsageError
from featlens_trainers import executor, runs
from featlens_trainers.runs import Run, newest_snapshot, read_run, read_stats, versions
from featlens_trainers.snapshots import read_tensors
from featlens_trainers.training import Step, Training, finite, optimise, seeded, stream

CONFIG = {"lr": 0.1, "net": {"blocks": 1, "sizes": (1, 2)}}


def started(seed: int = 0) -> Training:
    with seeded(seed):
        net = nn.Linear(3, 2)
    return Training({"net": net}, {"net": torch.optim.Adam(net.parameters(), lr=0.01)})


def steps_of(training: Training, total: int) -> Iterator[Step]:
    while training.images < total:
        x = torch.randn(4, 3, generator=stream(0, training.images))
        loss = training.networks["net"](x).square().sum()
        optimise(training.optimizers["net"], loss)
        training.count(4)
        yield Step(training.images, {"loss": finite(loss.detach(), "loss", training.images)})


def train(folder: Path, total: int, stop: int | None = None) -> Training:
    """Train in a run folder, saving every 8 images; ``stop`` breaks off after that many."""
    training = started()
    with Run(folder, "test", CONFIG) as run:
        run.restore(training)
        for step in run.drive(training, steps_of(training, total), total, save_every=8, log_every=4):
            if step.images == stop:
                break
    return training


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state").iterdir())


def same(first: Training, second: Training) -> bool:
    one, other = first.tensors(), second.tensors()
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


# --- whom it belongs to -------------------------------------------------------------------------------------


def test_the_record_says_what_runs_here_and_with_what(tmp_path: Path) -> None:
    with Run(tmp_path / "a" / "run", "teacher", CONFIG):
        record = read_run(tmp_path / "a" / "run")
    assert record["format"] == "featlens.run"
    assert record["kind"] == "teacher"
    assert record["status"] == "running"
    assert record["config"] == {"lr": 0.1, "net": {"blocks": 1, "sizes": [1, 2]}}
    assert record["versions"] == versions()
    assert {"featlens", "python", "torch", "numpy"} <= set(record["versions"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "lr": 0.2}, "lr: 0.1 there, 0.2 asked for; "),
        ({**CONFIG, "net": {"blocks": 2, "sizes": (1, 2)}}, "net.blocks: 1 there, 2 asked for"),
        ({"lr": 0.2, "net": {"blocks": 2}}, r"lr: 0.1 there, 0.2 asked for (and 2 more)"),
        ({**CONFIG, "new": 1}, "new: None there, 1 asked for"),
    ],
)
def test_another_configuration_is_refused_naming_the_key(tmp_path: Path, config: dict, message: str) -> None:
    train(tmp_path, 16)
    before = (tmp_path / "run.json").read_bytes(), states(tmp_path)
    with pytest.raises(UsageError) as caught, Run(tmp_path, "test", config):
        pass
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before == ((tmp_path / "run.json").read_bytes(), states(tmp_path))
    with Run(tmp_path, "test", CONFIG):
        pass


def test_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    with Run(tmp_path, "teacher", CONFIG):
        pass
    with (
        pytest.raises(UsageError, match="of kind 'teacher', not 'student'"),
        Run(tmp_path, "student", CONFIG),
    ):
        pass


def test_a_run_is_open_once_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOCK_PATIENCE", 0.3)
    with Run(tmp_path, "test", CONFIG):
        with pytest.raises(FeatlensError, match="in use by another process"), Run(tmp_path, "test", CONFIG):
            pass
        assert read_run(tmp_path)["status"] == "running"
    with Run(tmp_path, "test", CONFIG):
        pass


def test_records_of_other_programs_and_torn_ones_are_refused(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    (tmp_path / "run.json").write_text('{"format": "other"}')
    with pytest.raises(FeatlensError, match="not the record of a featlens run"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": "feat')
    with pytest.raises(FeatlensError, match="cannot be read"), Run(tmp_path, "test", CONFIG):
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(FeatlensError, match="expected a folder, found a file"),
        Run(tmp_path / "file", "t", {}),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


# --- states and resumption ----------------------------------------------------------------------------------


def test_the_last_two_states_are_kept_and_none_after_the_end(tmp_path: Path) -> None:
    train(tmp_path, 40, stop=36)
    assert states(tmp_path) == ["img-00000024.safetensors", "img-00000032.safetensors"]
    with Run(tmp_path, "test", CONFIG) as run:
        run.finish(answer=42)
        assert run.done
    assert states(tmp_path) == []
    with Run(tmp_path, "test", CONFIG) as run:
        assert run.done
        assert run.info == {"answer": 42}


@pytest.mark.parametrize("stop", [4, 8, 12, 20, 36])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    whole = train(tmp_path / "whole", 40)
    train(tmp_path / "cut", 40, stop)
    again = train(tmp_path / "cut", 40)
    assert same(again, whole)
    assert read_stats(tmp_path / "cut") == read_stats(tmp_path / "whole")
    assert [line["images"] for line in read_stats(tmp_path / "whole")] == list(range(4, 41, 4))


@pytest.mark.parametrize("damaged", [1, 2])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other network"])
def test_damaged_states_are_passed_over_with_a_remark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, damaged: int
) -> None:
    whole = train(tmp_path / "whole", 40)
    train(tmp_path / "cut", 40, stop=36)
    for name in states(tmp_path / "cut")[-damaged:]:
        path = tmp_path / "cut" / "state" / name
        content = path.read_bytes()
        if damage == "other network":
            runs.write_tensors(path, {"net/net/weight": torch.ones(9, 9)}, {"kind": "state", "images": 32})
        else:
            middle = len(content) - 20
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            path.write_bytes({"cut": content[:-9], "flip": flipped, "empty": b""}[damage])
    training = started()
    with Run(tmp_path / "cut", "test", CONFIG) as run, caplog.at_level(logging.WARNING):
        remarks = run.restore(training)
        assert len(remarks) == len(caplog.records) == damaged
        assert all("cannot be used" in remark and "\n" not in remark for remark in remarks)
        assert remarks[0].startswith("img-00000032")
        assert training.images == (24 if damaged == 1 else 0)
        assert same(training, started()) == (damaged == 2)
        list(run.drive(training, steps_of(training, 40), 40, save_every=8, log_every=4))
    assert same(training, whole)
    assert read_stats(tmp_path / "cut") == read_stats(tmp_path / "whole")


def test_a_failed_save_leaves_the_states_that_were_there(tmp_path: Path, monkeypatch) -> None:
    train(tmp_path, 40, stop=20)
    before = states(tmp_path)

    def full(*arguments: object) -> None:
        raise FeatlensError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_tensors", full)
        with pytest.raises(FeatlensError, match="the disk is full"):
            train(tmp_path, 40)
    assert states(tmp_path) == before
    assert same(train(tmp_path, 40), train(tmp_path / "whole", 40))


# --- statistics ---------------------------------------------------------------------------------------------


def test_statistics_hold_means_since_the_line_before(tmp_path: Path) -> None:
    training = Training({})

    def steps() -> Iterator[Step]:
        for number in range(6):
            training.count(2)
            yield Step(training.images, {"loss": float(number)})

    reports: list[tuple[int, int, str]] = []
    with Run(tmp_path, "test", {}) as run:
        list(run.drive(training, steps(), 12, lambda *said: reports.append(said), save_every=99, log_every=4))
    assert read_stats(tmp_path) == [
        {"images": 4, "loss": 0.5},
        {"images": 8, "loss": 2.5},
        {"images": 12, "loss": 4.5},
    ]
    assert reports == [(images, 12, "") for images in (2, 4, 6, 8, 10, 12)]


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    assert read_stats(tmp_path) == []
    (tmp_path / "stats.jsonl").write_text('{"images": 4, "loss": 1}\n[3]\n{"images": 8, "lo')
    assert read_stats(tmp_path) == [{"images": 4, "loss": 1}]


def test_without_a_state_old_statistics_are_dropped(tmp_path: Path) -> None:
    with Run(tmp_path, "test", {}) as run:
        run.log(0, frechet=1.0)
        run.log(4, loss=1.0)
    with Run(tmp_path, "test", {}) as run:
        run.restore(started())
    assert read_stats(tmp_path) == []


def test_time_adds_up_over_sessions(tmp_path: Path, monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    for _ in range(2):
        with Run(tmp_path, "test", {}) as run:
            now[0] += 7.0
            run.write()
    assert read_run(tmp_path)["seconds"] == 14.0


def test_the_newest_snapshot_is_the_one_with_most_images(tmp_path: Path) -> None:
    with pytest.raises(FeatlensError, match="no snapshot of a denoiser"):
        newest_snapshot(tmp_path)
    with Run(tmp_path, "test", {}) as run:
        for images in (0, 12_800, 123_456_789, 99_999_999):
            run.snapshot_path(images).write_bytes(b"")
    assert newest_snapshot(tmp_path).parent.name == "img-123456789"


# --- SIGKILL ------------------------------------------------------------------------------------------------

WORK = """
import os, signal, threading
import torch
from featlens_trainers import tasks
from featlens_trainers.presets import resolve_study
from featlens_trainers.runs import Run

drive = Run.drive

def often(run, training, steps, total, report=None, batch=1, **every):
    return drive(run, training, steps, total, report, save_every=32, log_every=48)

def work(folder, settings, what, after, pause):
    Run.drive = often
    torch.set_num_threads(1)

    def report(done, total, remark):
        if after and done >= after:
            threading.Timer(pause, os.kill, (os.getpid(), signal.SIGKILL)).start()

    config = resolve_study(settings)
    tasks.run_classifier(folder, config, "cpu")
    if what == "teacher":
        tasks.run_teacher(folder, config, "cpu", report)
    else:
        tasks.run_student(folder, config, "cpu", tasks.StudentSpec("random", "random", "js", 0), report)
"""

SETTINGS = """
divergences = ["js"]
[network]
channels = 8
labels = 10
augment_labels = 9
dropout = 0.1
[teacher]
images = 240
batch = 8
ramp_images = 64
augment = 0.5
ema_half_lives = [64]
ema_powers = [0.1]
snapshot_images = 80
[distill]
images = 200
batch = 10
warmup = 20
critic_updates = 2
balanced = true
ema_half_lives = [64]
ema_powers = [0.1]
[diagnostics]
sigmas = [0.5, 2.5]
images = 8
[classifier]
images = 256
batch = 64
[evaluation]
images = 16
times = 3
heun_steps = 2
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("what", ["teacher", "student"])
def test_runs_killed_at_any_moment_end_like_one_left_alone(tmp_path: Path, monkeypatch, what: str) -> None:
    (tmp_path / "killed_runs.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("killed_runs").work
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)

    # Restored after the test: the run that is left alone and the last one take place in this process.
    monkeypatch.setattr(Run, "drive", Run.drive)
    name = {"teacher": "teacher", "student": "student-random-random-js-s0"}[what]
    work(tmp_path / "whole", str(settings), what, 0, 0.0)
    for after, pause in ((80, 0.03), (140, 0.001)):
        arguments = (tmp_path / "cut", str(settings), what, after, pause)
        process = executor._context().Process(target=work, args=arguments)
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert states(tmp_path / "cut" / name)
        assert read_run(tmp_path / "cut" / name)["status"] == "running"
    work(tmp_path / "cut", str(settings), what, 0, 0.0)
    records = [read_run(tmp_path / folder / name) for folder in ("whole", "cut")]
    assert records[0]["status"] == records[1]["status"] == "done"
    assert records[0]["info"] == records[1]["info"]
    assert read_stats(tmp_path / "whole" / name) == read_stats(tmp_path / "cut" / name)
    snapshots = [tmp_path / folder / name / "snapshots" for folder in ("whole", "cut")]
    kept = [
        sorted(str(path.relative_to(place)) for path in place.rglob("*.safetensors")) for place in snapshots
    ]
    assert kept[0] == kept[1]
    assert {Path(entry).stem for entry in kept[0]} >= {"ema", "ema-64", "ema-power0.1"}
    for entry in kept[0]:
        one, other = (read_tensors(place / entry)[0] for place in snapshots)
        assert set(one) == set(other)
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items()), entry
