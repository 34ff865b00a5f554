"""A whole study, tiny: run once, run again, in workers, interrupted, and with every initialisation."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

from featlens import SampleSet
from featlens.denoiser import weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens.files import lock
from featlens_trainers import Study, StudyConfig, resolve_study, tasks
from featlens_trainers.classifier import features_of
from featlens_trainers.engine import Engine
from featlens_trainers.quality import quality
from featlens_trainers.results import summarise
from featlens_trainers.runs import newest_snapshot, read_run, read_stats
from featlens_trainers.sampler import OneStepGenerator
from featlens_trainers.settings import RATIO_INITIALISATIONS, STUDY_INITIALISATIONS
from featlens_trainers.snapshots import load_denoiser

SETTINGS = """
inits = ["teacher", "random"]
[network]
channels = 8
[teacher]
images = 640
ramp_images = 64
[regression]
images = 128
batch = 16
ramp_images = 64
[distill]
images = 128
batch = 16
[classifier]
images = 1280
[evaluation]
images = 64
times = 2
heun_steps = 3
grid = 2
[features]
sigmas = [0.5, 2.5]
sites = ["enc.4x4_block0", "dec.8x8_block1"]
permutations = 10
probe_splits = 2
"""

STUDENTS = ["student-teacher-random-reverse_kl-s0", "student-random-random-reverse_kl-s0"]
RUNS = ["classifier", "teacher", *STUDENTS]


LOOPS = {
    "train_classifier": tasks.quality,
    "train_teacher": tasks.teacher,
    "distill": tasks.student,
}


class Silent:
    """Monitor that remembers how jobs ended."""

    def __init__(self) -> None:
        self.ended_as: dict[str, str] = {}

    @contextlib.contextmanager
    def __call__(self, total: int) -> Iterator[Silent]:
        yield self

    def started(self, job: str) -> None: ...

    def progress(self, job: str, done: int, total: int, remark: str) -> None: ...

    def ended(self, job: str, outcome: Any) -> None:
        self.ended_as[job] = outcome.status


def settings(folder: Path) -> StudyConfig:
    path = folder / "tiny.toml"
    path.write_text(SETTINGS)
    return resolve_study(str(path))


@dataclasses.dataclass
class Finished:
    """A study that was run in this process, and every tensor of images that a loop was given."""

    folder: Path
    config: StudyConfig
    report: Path
    trained_on: dict[str, list[torch.Tensor]]


def spying(name: str, loop: Any, seen: dict[str, list[torch.Tensor]]) -> Any:
    """The loop, which also notes the images that it is given."""

    def spy(training: Any, data: Any, *rest: Any, **more: Any) -> Any:
        seen.setdefault(name, []).append(data.images)
        return loop(training, data, *rest, **more)

    return spy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("study")
    config = settings(folder)
    seen: dict[str, list[torch.Tensor]] = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, where in LOOPS.items():
            loop = getattr(where, name)

            def spy(
                training: Any, data: Any, *rest: Any, name: str = name, loop: Any = loop, **more: Any
            ) -> Any:
                seen.setdefault(name, []).append(data.images)
                return loop(training, data, *rest, **more)

            patch.setattr(where, name, spy)
        report = Study.open(folder / "run", config).run(jobs=0, monitor=Silent())
    return Finished(folder / "run", config, report, seen)


def copied(finished: Finished, target: Path) -> Study:
    shutil.copytree(finished.folder, target)
    return Study.open(target, finished.config)


def fingerprints(folder: Path) -> dict[str, tuple[int, str]]:
    """Time of change and content of every file of the runs and features."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for name in (*RUNS, "features")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def digests(folder: Path) -> dict[str, str]:
    """Weights of every run."""
    out = {name: weights_digest(load_denoiser(newest_snapshot(folder / name))[0]) for name in RUNS[1:]}
    return out | {"classifier": weights_digest(tasks.load_classifier(folder, "cpu")[0])}


def comparable(folder: Path) -> dict[str, Any]:
    """What results.json holds, without times and places."""
    results = json.loads((folder / "results.json").read_text())
    for entry in (*results["students"], *results["runs"].values()):
        entry.pop("seconds")
    for entry in results["features"].values():
        entry["probe"]["provenance"].pop("file")
    results.pop("sessions")
    return results


# --- one run ------------------------------------------------------------------------------------------------


def test_a_study_leaves_all_its_parts(finished: Finished) -> None:
    folder = finished.folder
    assert finished.report == folder / "report.html"
    for name in ("study.toml", "results.json", "results.nc", "report.html"):
        assert (folder / name).stat().st_size > 0
    for name in RUNS:
        record = read_run(folder / name)
        assert record["status"] == "done", name
        assert not list((folder / name).glob("state/*"))
    assert {path.parent.name for path in (folder / STUDENTS[0]).rglob("ema.safetensors")} == {
        "img-00000000",
        "img-00000128",
    }
    assert {path.stem for path in (folder / "features").glob("*.h5")} >= {"teacher", *STUDENTS}


def test_held_out_images_are_never_trained_on(finished: Finished) -> None:
    assert {name: len(given) for name, given in finished.trained_on.items()} == {
        "train_classifier": 1,
        "train_teacher": 1,
        "distill": 2,
    }
    held = {image.tobytes() for image in SampleSet.load(split="held-out").images}
    for given in finished.trained_on.values():
        for images in given:
            assert len(images) == 1198
            assert not any(image.tobytes() in held for image in images.numpy())


def test_results_agree_with_the_runs_and_with_each_other(finished: Finished) -> None:
    folder = finished.folder
    text = (folder / "results.json").read_text()
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"results.json holds {name}"))
    assert results["config"] == json.loads(json.dumps(results["config"]))
    assert [student["name"] for student in results["students"]] == STUDENTS
    assert results["failed"] == {}
    table = xr.load_dataset(folder / "results.nc", engine="h5netcdf")
    for student in results["students"]:
        lines = [line for line in read_stats(folder / student["name"]) if "frechet" in line]
        assert [point["images"] for point in student["curve"]] == [0, 64, 128]
        assert student["curve"] == [
            {key: line[key] for key in ("images", "frechet", "kid")} for line in lines
        ]
        assert student["curve"][-1]["frechet"] == student["quality"]["frechet"]
        assert student["weights_digest"] == digests(folder)[student["name"]]
        row = table.sel(student=student["name"])
        assert row["frechet"].values.tolist() == [point["frechet"] for point in student["curve"]]
        assert row["kid"].values.tolist() == [point["kid"] for point in student["curve"]]
        assert (str(row["init"].values), int(row["seed"])) == (student["init"], 0)
    assert results["summary"] == json.loads(json.dumps(summarise(results["students"])))
    assert set(results["features"]) >= {"teacher", *STUDENTS}
    for name in STUDENTS:
        cka = results["features"][name]["cka"]
        assert cka["sigmas"] == [0.5, 2.5]
        assert set(cka["same_site"]) == {"enc.4x4_block0", "dec.8x8_block1"}
    assert set(results["runs"]["teacher"]["quality"]) == {"heun", "one_step", "training_images"}


def test_the_teacher_start_is_the_teacher_and_the_random_start_is_not(finished: Finished) -> None:
    folder = finished.folder
    teacher = digests(folder)["teacher"]
    starts = {
        name: weights_digest(
            load_denoiser(folder / name / "snapshots" / "img-00000000" / "ema.safetensors")[0]
        )
        for name in STUDENTS
    }
    assert starts[STUDENTS[0]] == teacher != starts[STUDENTS[1]]
    assert len({*digests(folder).values()}) == 4


def test_quality_is_measured_on_held_out_images_with_the_stored_classifier(finished: Finished) -> None:
    folder, config = finished.folder, finished.config
    classifier, _ = tasks.load_classifier(folder, "cpu")
    student, about = load_denoiser(newest_snapshot(folder / STUDENTS[0]))
    sampler = OneStepGenerator(student, about["sigma_init"])
    images = tasks.evaluation_images(sampler, config, "cpu")
    assert len(images) == 64
    reference = features_of(classifier, torch.from_numpy(SampleSet.load(split="held-out").images))
    found = quality(features_of(classifier, images), reference)
    assert read_run(folder / STUDENTS[0])["info"]["quality"] == pytest.approx(found.to_dict(), rel=1e-5)


# --- again --------------------------------------------------------------------------------------------------


def test_the_second_run_finds_everything_done_and_touches_nothing(finished: Finished, tmp_path: Path) -> None:
    study = copied(finished, tmp_path / "again")
    before, results = fingerprints(study.folder), comparable(study.folder)
    start = time.monotonic()
    heard = Silent()
    study.run(jobs=0, monitor=heard)
    assert set(heard.ended_as.values()) == {"done"}
    assert fingerprints(study.folder) == before
    assert comparable(study.folder) == results
    assert time.monotonic() - start < 20
    assert len(json.loads((study.folder / "sessions.json").read_text())) == 2


def test_workers_find_the_same_to_the_last_bit(finished: Finished, tmp_path: Path) -> None:
    study = Study.open(tmp_path / "workers", finished.config)
    study.run(jobs=2, monitor=Silent())
    assert digests(study.folder) == digests(finished.folder)
    assert comparable(study.folder) == comparable(finished.folder)


def test_the_folder_remembers_its_configuration(finished: Finished, tmp_path: Path) -> None:
    assert Study.open(finished.folder).config == finished.config
    with pytest.raises(UsageError, match="holds no study"):
        Study.open(tmp_path / "nothing")
    other = dataclasses.replace(
        finished.config, distill=dataclasses.replace(finished.config.distill, lr=1.0), seeds=(0, 1)
    )
    before = fingerprints(finished.folder)
    with pytest.raises(UsageError) as caught:
        Study.open(finished.folder, other)
    assert "distill.lr: 0.0003 there, 1.0 asked for (and 1 more)" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fingerprints(finished.folder) == before
    with pytest.raises(UsageError, match="holds a single run, not a study"):
        Study.open(finished.folder / "teacher", finished.config)


# --- interruption -------------------------------------------------------------------------------------------


def without(study: Study, name: str) -> None:
    """As if this student had never been started."""
    shutil.rmtree(study.folder / name)
    for path in (study.folder / "features").glob(f"{name}*"):
        path.unlink()


def test_an_interrupted_study_continues_where_it_was(finished: Finished, tmp_path, monkeypatch) -> None:
    study = copied(finished, tmp_path / "cut")
    without(study, STUDENTS[1])
    kept = {key: value for key, value in fingerprints(study.folder).items() if STUDENTS[1] not in key}
    distill = tasks.student.distill

    def failing(*arguments: Any, **options: Any) -> Iterator[Any]:
        for step in distill(*arguments, **options):
            if step.images > 80:
                raise RuntimeError("somebody pulled the plug")
            yield step

    heard = Silent()
    with monkeypatch.context() as patch:
        patch.setattr(tasks.student, "distill", failing)
        with pytest.raises(FeatlensError) as caught:
            study.run(jobs=0, monitor=heard)
    name = STUDENTS[1]
    assert f"job {name!r} failed (1 more did not run or failed): RuntimeError: somebody pulled" in str(
        caught.value
    )
    assert heard.ended_as.pop(name) == "failed"
    assert heard.ended_as.pop(f"analyse {name}") == "skipped"
    assert set(heard.ended_as.values()) == {"done"}
    results = comparable(study.folder)
    assert set(results["failed"]) == {name, f"analyse {name}"}
    assert [student["status"] for student in results["students"]] == ["done", "running"]
    assert {key: fingerprints(study.folder)[key] for key in kept} == kept
    study.run(jobs=0, monitor=Silent())
    assert digests(study.folder) == digests(finished.folder)
    assert comparable(study.folder) == comparable(finished.folder)


def test_a_study_is_run_by_one_process_at_a_time(finished: Finished, tmp_path: Path) -> None:
    study = copied(finished, tmp_path / "busy")
    with (
        lock(study.folder / ".lock", "the study"),
        pytest.raises(FeatlensError, match="in use by another process"),
    ):
        study.run(jobs=0, monitor=Silent())


def test_a_student_whose_teacher_is_missing_says_so(finished: Finished, tmp_path: Path) -> None:
    spec = tasks.StudentSpec("teacher", "random", "reverse_kl", 0)
    with pytest.raises(FeatlensError, match=r"needs the run .*teacher, which is not there; train it first"):
        tasks.run_student(tmp_path, finished.config, "cpu", spec)


# --- every initialisation -----------------------------------------------------------------------------------


def test_every_initialisation_runs_with_both_starts_of_the_ratio_network(
    finished: Finished, tmp_path
) -> None:
    folder = tmp_path / "all"
    for name in ("classifier", "teacher"):
        shutil.copytree(finished.folder / name, folder / name)
    config = dataclasses.replace(
        finished.config,
        inits=STUDY_INITIALISATIONS,
        ratio_inits=RATIO_INITIALISATIONS,
        distill=dataclasses.replace(finished.config.distill, images=16),
        evaluation=dataclasses.replace(finished.config.evaluation, images=16, times=1),
    )
    study = Study(folder, config)
    specs = study.students()
    assert len(specs) == len({spec.name for spec in specs}) == 12
    study.run_only([spec.name for spec in specs], Engine(), monitor=Silent())
    starts: dict[tuple[str, str], str] = {}
    for spec in specs:
        record = read_run(folder / spec.name)
        assert record["status"] == "done"
        assert math.isfinite(record["info"]["quality"]["frechet"])
        start = folder / spec.name / "snapshots" / "img-00000000" / "ema.safetensors"
        starts[spec.init, spec.ratio] = weights_digest(load_denoiser(start)[0])
        origins = record["info"]["origins"]
        assert ("teacher" in origins["ratio"]) == (spec.ratio == "teacher")
    # The student's start does not depend on the ratio network's, and all six differ.
    assert len(set(starts.values())) == 6
    assert all(starts[init, "teacher"] == starts[init, "random"] for init in STUDY_INITIALISATIONS)
    runs = {
        name: weights_digest(load_denoiser(newest_snapshot(folder / name))[0])
        for name in STUDY_INITIALISATIONS[2:4]
    }
    assert {name: starts[name, "random"] for name in runs} == runs


def test_jobs_wait_for_what_they_need_and_for_nothing_else(finished: Finished) -> None:
    config = dataclasses.replace(
        finished.config, inits=STUDY_INITIALISATIONS, ratio_inits=RATIO_INITIALISATIONS
    )
    needs = {job.name: set(job.needs) for job in Study(Path("nowhere"), config).jobs()}
    assert needs["student-random-random-reverse_kl-s0"] == {"classifier"}
    assert needs["student-random-teacher-reverse_kl-s0"] == {"teacher"}
    assert needs["student-single_sigma-random-reverse_kl-s0"] >= {"single_sigma"}
    assert needs["student-map_regressed-teacher-reverse_kl-s0"] == {"teacher", "map_regressed"}
    assert needs["single_sigma"] == {"classifier"}
    assert needs["map_regressed"] == {"teacher"}
    assert all(need in needs for wanted in needs.values() for need in wanted)
    plain = {job.name for job in Study(Path("nowhere"), finished.config).jobs()}
    assert not {"single_sigma", "map_regressed"} & plain
