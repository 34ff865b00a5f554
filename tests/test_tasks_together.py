"""What the trainings of a study do where several processes train together, looked at from one."""

from __future__ import annotations

from pathlib import Path

import pytest

from featlens.errors import FeatlensError
from featlens_trainers import tasks
from featlens_trainers.classifier import Classifier, save_classifier
from featlens_trainers.engine import Engine
from featlens_trainers.monitor import silent_monitor
from featlens_trainers.presets import resolve_study
from featlens_trainers.runs import newest_snapshot, read_run
from featlens_trainers.settings import StudyConfig
from featlens_trainers.study import Study

TINY = {
    "network": {"channels": 8},
    "teacher": {"images": 16, "batch": 8},
    "regression": {"images": 16, "batch": 8, "bank": 16, "heun_steps": 2},
    "body": {"images": 16, "batch": 8},
    "evaluation": {"images": 8, "heun_steps": 2, "grid": 2},
    "inits": ["single_sigma", "band_sigma", "map_regressed", "map_regressed_ode", "classifier_body"],
}


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return resolve_study("digits", overrides=TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, config: StudyConfig) -> Path:
    """A study with a classifier and a teacher."""
    study: Path = tmp_path_factory.mktemp("runs") / "study"
    (study / "classifier").mkdir(parents=True)
    classifier = Classifier(1, 8, 10, config.classifier.features)
    save_classifier(study / "classifier" / "classifier.safetensors", classifier, data="digits", seed=0)
    tasks.run_teacher(study, config, "cpu")
    return study


@pytest.mark.parametrize("name", list(tasks.CONTROLS))
def test_nobody_goes_on_before_a_control_is_there(name: str, folder: Path, config: StudyConfig) -> None:
    """Another process would look for the snapshot while the main one still writes it."""

    class Watched(Engine):
        there: tuple[str, bool] = ("", False)

        def wait(self) -> None:
            record = read_run(folder / name) or {}
            there = bool(list((folder / name).glob("snapshots/*/ema.safetensors")))
            self.there = (str(record.get("status")), there)

    engine = Watched()
    tasks.run_control(folder, config, "cpu", name, engine=engine)
    assert engine.there == ("done", True)
    assert newest_snapshot(folder / name).exists()


def test_after_a_failure_no_other_training_starts(
    config: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    class Two(Engine):
        world = 2  # type: ignore[assignment]

    def fails(*where: object, **options: object) -> None:
        raise FeatlensError("the disk is full")

    monkeypatch.setattr(tasks, "run_classifier", lambda *where, **options: None)
    monkeypatch.setattr(tasks, "run_teacher", fails)
    monkeypatch.setattr(tasks, "run_control", lambda *where, **options: begun.append(where[-1]))
    with pytest.raises(FeatlensError, match="the disk is full"):
        Study(tmp_path, config).run_only(["teacher", "single_sigma"], Two(), monitor=silent_monitor)
    assert not begun
