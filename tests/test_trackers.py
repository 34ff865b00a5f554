"""Trackers get what stats.jsonl gets, offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from featlens.errors import UsageError
from featlens_trainers import trackers
from featlens_trainers.engine import Engine
from featlens_trainers.trackers import Trackers, check_trackers, trackers_of

CONFIG = {"lr": 1e-3, "network": {"channels": 8, "channel_mult": [1, 2], "dropout": None}, "decay": True}


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_tensorboard_shows_what_was_logged(tmp_path) -> None:
    with Trackers(["tensorboard"], tmp_path, CONFIG) as logged:
        for images in (64, 128):
            logged.log(images, {"loss": 64 / images, "quality": {"frechet": images}, "note": "text"})
    assert curve(tmp_path, "loss") == [(64, 1.0), (128, 0.5)]
    assert curve(tmp_path, "quality/frechet") == [(64, 64.0), (128, 128.0)]


def test_resumed_run_goes_on_where_its_state_was(tmp_path) -> None:
    with Trackers(["tensorboard"], tmp_path, CONFIG) as logged:
        for images in (64, 128, 192):
            logged.log(images, {"loss": images})
    with Trackers(["tensorboard"], tmp_path, CONFIG, images=128) as logged:
        logged.log(256, {"loss": 0.5})
    assert curve(tmp_path, "loss") == [(64, 64.0), (128, 128.0), (256, 0.5)]


def test_settings_are_stored_once(tmp_path) -> None:
    Trackers(["tensorboard"], tmp_path, CONFIG).close()
    Trackers(["tensorboard"], tmp_path, CONFIG, images=64).close()
    (settings,) = tmp_path.rglob("hparams.yml")
    lines = settings.read_text().splitlines()
    assert "network/channels: 8" in lines and "network/channel_mult: '[1, 2]'" in lines and len(lines) == 4


def test_only_the_main_process_logs(tmp_path) -> None:
    class Other(Engine):
        rank = 1

    with trackers_of(Other(trackers=("tensorboard",)), tmp_path, CONFIG) as logged:
        logged.log(64, {"loss": 1.0})
    assert not list(tmp_path.iterdir())
    with trackers_of(Engine(trackers=("tensorboard",)), tmp_path, CONFIG) as logged:
        logged.log(64, {"loss": 1.0})
    assert curve(tmp_path, "loss") == [(64, 1.0)]


def test_no_trackers_cost_nothing(tmp_path) -> None:
    code = (
        "import sys; from featlens_trainers.trackers import Trackers; t = Trackers((), sys.argv[1], {}); "
        "t.log(1, {'a': 1}); t.close(); print('accelerate' in sys.modules, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"


def test_unknown_and_missing_trackers_are_one_line(monkeypatch) -> None:
    with pytest.raises(UsageError, match="unknown tracker 'tensorbored': did you mean 'tensorboard'"):
        check_trackers(["tensorbored"])
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", list)
    for name in trackers.TRACKERS:
        with pytest.raises(UsageError, match=f"tracker {name}: not installed here; run pip install {name}"):
            check_trackers([name])


WANDB = """
import json, os

class Run:
    def log(self, values, step=None):
        note("log", values, step)
    def finish(self):
        note("finish")

class Config:
    def update(self, values, allow_val_change):
        note("config", values)

def note(*what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(what) + "\\n")

config = Config()

def init(**told):
    note("init", told)
    return Run()
"""


def test_wandb_is_offline_and_the_same_run_after_a_resume(tmp_path) -> None:
    """A stand-in of wandb writes down how accelerate calls it: the real one is not needed here."""
    (tmp_path / "site" / "wandb").mkdir(parents=True)
    (tmp_path / "site" / "wandb" / "__init__.py").write_text(WANDB)
    (tmp_path / "site" / "wandb-1.0.dist-info").mkdir()
    (tmp_path / "site" / "wandb-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wandb\nVersion: 1.0\n"
    )
    code = (
        "import sys; from featlens_trainers.trackers import Trackers\n"
        "for images in (0, 64):\n"
        "    with Trackers(['wandb'], sys.argv[1], {'lr': 1}, images) as t: t.log(images + 64, {'loss': 1.0})"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path / "site"), os.environ.get("PYTHONPATH"))))
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    environment |= {"NOTES": str(tmp_path / "notes"), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code, tmp_path / "run"], env=environment, check=True, timeout=120)
    notes = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
    assert [note[0] for note in notes] == ["init", "config", "log", "finish", "init", "log", "finish"]
    first, second = notes[0][1], notes[4][1]
    assert first == second
    assert (first["project"], first["name"], first["mode"]) == ("featlens", "run", "offline")
    assert notes[2][1:] == [{"loss": 1.0}, 64] and notes[5][1:] == [{"loss": 1.0}, 128]
