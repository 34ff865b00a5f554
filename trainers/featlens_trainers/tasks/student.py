"""Distillation of one student of a study, with its quality measured on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import FeatlensError
from featlens_trainers.alarms import Alarms
from featlens_trainers.config import to_mapping
from featlens_trainers.data import ImageData
from featlens_trainers.diagnostics import Diagnosis, bin_shares, diagnose
from featlens_trainers.directions import resolve_divergence
from featlens_trainers.distillation import distill, start_distillation
from featlens_trainers.engine import Engine
from featlens_trainers.initialisation import (
    build_denoiser,
    initialise_ratio,
    initialise_student,
    load_source,
    seeded,
    student_seed,
)
from featlens_trainers.networks import FakeScoreRatio, RatioNetwork, build_ratio
from featlens_trainers.posthoc import save_averages
from featlens_trainers.quality import Quality
from featlens_trainers.runs import Report, Run, crossed, newest_snapshot
from featlens_trainers.sampler import OneStepGenerator
from featlens_trainers.settings import DistillConfig, InitSpec, StudyConfig
from featlens_trainers.settings.initialisation import TRAINED
from featlens_trainers.snapshots import load_denoiser, save_denoiser, save_ratio, tensors_digest
from featlens_trainers.tasks.common import (
    StudentSpec,
    about,
    denoiser_of,
    evaluation_images,
    keep_samples,
    network_settings,
    training_data,
)
from featlens_trainers.tasks.quality import judge_identity, judge_of
from featlens_trainers.training import Step, Training

__all__ = ["run_student"]


@dataclass(frozen=True)
class _Plan:
    """What one student is: its settings, its start, and the trained networks that it needs."""

    spec: StudentSpec
    settings: DistillConfig
    init: InitSpec
    trained: Mapping[str, EDMDenoiser]
    others: Mapping[str, Mapping[str, Tensor]]

    @property
    def teacher(self) -> EDMDenoiser | None:
        return self.trained.get("teacher")

    @property
    def weights(self) -> dict[str, Mapping[str, Tensor]]:
        """State dicts of all that the initialisation takes from."""
        return {name: network.state_dict() for name, network in self.trained.items()} | dict(self.others)


def _planned(study: Path, config: StudyConfig, spec: StudentSpec, device: str) -> _Plan:
    settings = config.loss(spec.divergence)
    init = config.initialisation(spec.init, spec.ratio)
    wanted = set(init.sources())
    if settings.direction != "ratio":
        wanted.add("teacher")
    trained = {name: _source(study, name, device) for name in sorted(wanted & set(TRAINED))}
    others = {path: load_source(path) for path in sorted(wanted - set(TRAINED))}
    return _Plan(spec, settings, init, trained, others)


def _source(study: Path, name: str, device: str) -> EDMDenoiser:
    """A trained network of the study by its name."""
    if not (study / name / "run.json").exists():
        raise FeatlensError(
            f"an initialisation needs the run {study / name}, which is not there; train it first"
        )
    return load_denoiser(newest_snapshot(study / name), device)[0]


def run_student(
    study: Path,
    config: StudyConfig,
    device: str,
    spec: StudentSpec,
    report: Report | None = None,
    engine: Engine | None = None,
) -> None:
    """Distil one student, measuring its quality at evaluation points spread evenly over the run."""
    engine = engine or Engine(device)
    plan = _planned(study, config, spec, str(engine.device))
    with Run(study / spec.name, "student", _described(study, config, plan), engine) as run:
        if run.done:
            return
        seed = student_seed(config, spec.seed)
        student = build_denoiser(config.network, config.sigma_data, seed).to(engine.device)
        critic = _critic(config, plan.settings, seed).to(engine.device)
        manifests = _initialise(student, critic, plan, seed)
        training = start_distillation(student, critic, plan.settings)
        run.restore(training)
        data = training_data(config, engine.device)
        evaluate = _Evaluation(study, config, run, training, plan, data)
        if training.images == 0 and engine.main:
            run.keep_json("initialisation.json", {name: m.to_dict() for name, m in manifests.items()})
            path = run.snapshot_path(0)
            save_denoiser(path, student, sigma_init=plan.settings.sigma_init, step="initial", images=0)
            evaluate(0)
        steps = distill(training, data, plan.settings, seed, engine=engine, teacher=plan.teacher)
        every = max(plan.settings.images // config.evaluation.times, 1)
        for _ in _evaluated(run, training, steps, plan.settings.images, every, evaluate, report):
            pass
        _finish(run, training, config, plan, evaluate, manifests)


def _described(study: Path, config: StudyConfig, plan: _Plan) -> dict[str, Any]:
    """Everything that the student's numbers depend on."""
    return network_settings(config) | {
        "distill": to_mapping(plan.settings),
        "init": to_mapping(plan.init),
        "student_seed": plan.spec.seed,
        "sources": {name: weights_digest(network) for name, network in plan.trained.items()}
        | {path: tensors_digest(tensors) for path, tensors in plan.others.items()},
        "evaluation": to_mapping(config.evaluation),
        **judge_identity(study, config),
    }


def _critic(config: StudyConfig, settings: DistillConfig, seed: int) -> nn.Module:
    """The ratio network, or the fake score of a score-based direction, at random."""
    if settings.direction != "ratio":
        return build_denoiser(config.network, config.sigma_data, seed)
    with seeded(seed, "ratio"):
        return build_ratio(config.network, settings.ratio, config.sigma_data)


def _initialise(student: EDMDenoiser, critic: nn.Module, plan: _Plan, seed: int) -> dict[str, Any]:
    weights = plan.weights
    student_manifest = initialise_student(student, plan.init, weights, seed)
    if isinstance(critic, (RatioNetwork, FakeScoreRatio)):
        return {"student": student_manifest, "ratio": initialise_ratio(critic, plan.init, weights, seed)}
    # A fake score is a denoiser; it starts as a student would.
    start = InitSpec("teacher" if plan.init.ratio == "teacher" else "random", "random")
    fake_score = initialise_student(denoiser_of(critic), start, weights, seed)
    return {"student": student_manifest, "fake_score": fake_score}


def _finish(
    run: Run,
    training: Training,
    config: StudyConfig,
    plan: _Plan,
    evaluate: _Evaluation,
    manifests: Mapping[str, Any],
) -> None:
    ema = denoiser_of(training.networks["ema"])
    if run.engine.main:
        folder = run.snapshot_path(training.images).parent
        save_averages(folder, training, sigma_init=plan.settings.sigma_init)
        ratio = training.networks.get("ratio")
        if isinstance(ratio, (RatioNetwork, FakeScoreRatio)):
            save_ratio(folder / "ratio.safetensors", ratio, images=training.images)
        if evaluate.last is None:
            # Killed between the last evaluation and here: the state is that of the end.
            evaluate.look()
        assert evaluate.last is not None
        keep_samples(run, evaluate.last[: config.evaluation.grid**2])
        found = {} if evaluate.result is None else evaluate.result.to_dict()
        origins = {name: manifest.counts() for name, manifest in manifests.items()}
        run.finish(quality=found, origins=origins, **about(ema, run))
    run.engine.wait()


class _Evaluation:
    """Measures and diagnoses the current student, logs the result, and rings where it must."""

    last: Tensor | None = None
    result: Quality | None = None

    def __init__(
        self, study: Path, config: StudyConfig, run: Run, training: Training, plan: _Plan, data: ImageData
    ) -> None:
        self._config, self._run, self._training, self._plan, self._data = config, run, training, plan, data
        self.batch = plan.settings.batch
        self._generator = OneStepGenerator(training.networks["ema"], plan.settings.sigma_init)
        self._judge = judge_of(study, config, str(run.engine.device)) if run.engine.main else None
        self._shares = bin_shares(config.diagnostics.sigmas, plan.settings.noise)

    def __call__(self, images: int) -> None:
        self.look()
        diagnosis = self._diagnosis(images)
        found = {} if diagnosis is None else diagnosis.metrics()
        if self.result is not None:
            found |= {"frechet": self.result.frechet, "kid": self.result.kid}
        self._run.log(images, **found)
        if diagnosis is not None:
            alarms = Alarms(self._training.notes, self._config.diagnostics.alarms)
            alarms.hear(diagnosis, self._shares)

    def look(self) -> None:
        """Draw the images of the current student and measure them; nothing is logged."""
        self.last = evaluation_images(self._generator, self._config, self._run.engine.device)
        self.result = None if self._judge is None else self._judge(self.last)

    def _diagnosis(self, images: int) -> Diagnosis | None:
        settings = self._config.diagnostics
        if not settings.images:
            return None
        loss = self._plan.settings
        return diagnose(
            self._generator,
            self._training.networks.get("ratio"),
            self._data,
            settings,
            self._config.seed,
            images,
            teacher=self._plan.teacher,
            weight=resolve_divergence(loss.divergence).weight if loss.direction == "ratio" else None,
            device=self._run.engine.device,
        )


def _evaluated(
    run: Run,
    training: Training,
    steps: Iterator[Step],
    total: int,
    every: int,
    evaluate: _Evaluation,
    report: Report | None,
) -> Iterator[Step]:
    save_every = max(6_400, total // 200)
    for step in run.drive(training, steps, total, report, save_every=save_every, batch=evaluate.batch):
        due = crossed(step.images, every, training) and total - step.images > every // 2
        if (due or step.images >= total) and run.engine.main:
            evaluate(step.images)
        yield step
