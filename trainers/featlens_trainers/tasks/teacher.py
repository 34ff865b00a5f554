"""The teacher of a study, and the controls that are trained like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import UsageError
from featlens.seeds import derive
from featlens_trainers.body import BodyClassifier, start_body, train_body
from featlens_trainers.config import config_difference, to_mapping
from featlens_trainers.engine import Engine
from featlens_trainers.initialisation import build_denoiser
from featlens_trainers.posthoc import save_averages
from featlens_trainers.runs import Report, Run, crossed, newest_snapshot
from featlens_trainers.sampler import OneStepGenerator, heun_sample
from featlens_trainers.settings import StudyConfig, TeacherConfig
from featlens_trainers.snapshots import load_denoiser, save_denoiser
from featlens_trainers.tasks.common import (
    about,
    denoiser_of,
    evaluation_images,
    image_shape,
    keep_samples,
    network_settings,
    training_data,
)
from featlens_trainers.tasks.quality import judge_identity, judge_of
from featlens_trainers.teacher import regress_map, start_teacher, train_teacher
from featlens_trainers.training import Step, Training

__all__ = ["CONTROLS", "pretrained_teacher", "run_control", "run_teacher"]


def run_teacher(
    study: Path, config: StudyConfig, device: str, report: Report | None = None, engine: Engine | None = None
) -> None:
    """Train the teacher; its quality is that of Heun samples of its average."""
    engine = engine or Engine(device)
    given = None if config.pretrained is None else pretrained_teacher(config, str(engine.device))
    settings = network_settings(config) | {
        "teacher": to_mapping(config.teacher) if given is None else {"pretrained": weights_digest(given)},
        **judge_identity(study, config),
    }
    with Run(study / "teacher", "teacher", settings, engine) as run:
        if run.done:
            return
        if given is None:
            ema = denoiser_of(_denoise(run, config, config.teacher, report).networks["ema"])
        else:
            ema = given
            if engine.main:
                save_denoiser(run.snapshot_path(0), given, sigma_init=config.distill.sigma_init, images=0)
        if engine.main:
            if report is not None:
                report(config.teacher.images, config.teacher.images, "sampling")
            run.finish(quality=_teacher_quality(study, config, run, ema), **about(ema, run))
        engine.wait()


def pretrained_teacher(config: StudyConfig, device: str) -> EDMDenoiser:
    """The teacher that somebody trained already, if it is of the study's architecture."""
    path = Path(str(config.pretrained))
    if not path.exists():
        raise UsageError(f"no teacher at {path}; give the folder of a run, or a snapshot in it")
    denoiser, described = load_denoiser(path if path.is_file() else newest_snapshot(path), device)
    lines = config_difference(dict(described["network"]), to_mapping(config.network))
    # Dropout has no tensors; a student may have another.
    lines = [line for line in lines if not line.startswith("dropout:")]
    if denoiser.sigma_data != config.sigma_data:
        lines.append(f"sigma_data: {denoiser.sigma_data!r} there, {config.sigma_data!r} asked for")
    if lines:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise UsageError(
            f"{path} is of another architecture than the students: network.{lines[0]}{more}; set the network "
            "of the study to the teacher's"
        )
    return denoiser


def _teacher_quality(study: Path, config: StudyConfig, run: Run, ema: EDMDenoiser) -> dict[str, Any]:
    device = str(run.engine.device)
    steps = config.evaluation.heun_steps
    heun = evaluation_images(lambda z, labels: heun_sample(ema, z, labels, steps=steps), config, device)
    one_step = evaluation_images(OneStepGenerator(ema, config.distill.sigma_init), config, device)
    data = training_data(config, device)
    real = data.batch(torch.arange(min(len(data), config.evaluation.images)))[0].cpu()
    keep_samples(run, heun[: config.evaluation.grid**2])
    judge = judge_of(study, config, device)
    if judge is None:
        return {}
    return {
        key: asdict(judge(shown))
        for key, shown in {"heun": heun, "one_step": one_step, "training_images": real}.items()
    }


def _denoise(run: Run, config: StudyConfig, settings: TeacherConfig, report: Report | None) -> Training:
    """Train a denoiser in its run, keeping snapshots of all its averages."""
    engine = run.engine
    data = training_data(config, engine.device)
    denoiser = build_denoiser(config.network, config.sigma_data, config.seed).to(engine.device)
    training = start_teacher(denoiser, settings)
    run.restore(training)
    steps = train_teacher(training, data, settings, config.seed, engine=engine)
    for step in run.drive(training, steps, settings.images, report, batch=settings.batch):
        every = settings.snapshot_images
        if every and step.images < settings.images and crossed(step.images, every, training):
            _save_averages(run, training, config)
    _save_averages(run, training, config)
    return training


def _save_averages(run: Run, training: Training, config: StudyConfig) -> None:
    if run.engine.main:
        folder = run.snapshot_path(training.images).parent
        save_averages(folder, training, sigma_init=config.distill.sigma_init)


# --- controls -----------------------------------------------------------------------------------------------


def run_control(
    study: Path,
    config: StudyConfig,
    device: str,
    name: str,
    report: Report | None = None,
    engine: Engine | None = None,
) -> None:
    """Train a control by its name, one of :data:`CONTROLS`."""
    CONTROLS[name](study, config, engine or Engine(device), report)


def _run_denoiser(
    name: str,
    settings: TeacherConfig,
    study: Path,
    config: StudyConfig,
    engine: Engine,
    report: Report | None,
) -> None:
    """The teacher's training at other noise levels, same images seen."""
    described = network_settings(config) | {"teacher": to_mapping(settings)}
    with Run(study / name, name, described, engine) as run:
        if not run.done:
            training = _denoise(run, config, settings, report)
            run.finish(**about(denoiser_of(training.networks["ema"]), run))
            # Who goes on sooner may look for the snapshot before the main process has written it.
            engine.wait()


def _run_single_sigma(study: Path, config: StudyConfig, engine: Engine, report: Report | None) -> None:
    settings = replace(config.teacher, sigma=config.distill.sigma_init)
    _run_denoiser("single_sigma", settings, study, config, engine, report)


def _run_band_sigma(study: Path, config: StudyConfig, engine: Engine, report: Report | None) -> None:
    settings = replace(config.teacher, sigma_low=config.band[0], sigma_high=config.band[1])
    _run_denoiser("band_sigma", settings, study, config, engine, report)


def _run_regressed(
    name: str, target: str, study: Path, config: StudyConfig, engine: Engine, report: Report | None
) -> None:
    """A random network regressed on the teacher's map."""
    teacher, _ = load_denoiser(newest_snapshot(study / "teacher"), str(engine.device))
    sigma_init = config.distill.sigma_init
    settings = network_settings(config) | {
        "regression": to_mapping(config.regression),
        "sigma_init": sigma_init,
        "teacher": weights_digest(teacher),
    }
    with Run(study / name, name, settings, engine) as run:
        if run.done:
            return
        seed = derive(config.seed, name)
        denoiser = build_denoiser(config.network, config.sigma_data, seed).to(engine.device)
        training = start_teacher(denoiser, config.regression)
        run.restore(training)
        steps = regress_map(
            training,
            teacher,
            image_shape(config),
            sigma_init,
            config.regression,
            seed,
            target=target,
            engine=engine,
        )
        _finish(run, training, steps, config, config.regression.images, config.regression.batch, report)


def _run_body(study: Path, config: StudyConfig, engine: Engine, report: Report | None) -> None:
    """A body pretrained to name the classes, without denoising."""
    data = training_data(config, engine.device)
    settings = network_settings(config) | {"body": to_mapping(config.body)}
    with Run(study / "classifier_body", "classifier_body", settings, engine) as run:
        if run.done:
            return
        seed = derive(config.seed, "classifier_body")
        denoiser = build_denoiser(config.network, config.sigma_data, seed).to(engine.device)
        training = start_body(denoiser, data.num_labels, config.body, seed)
        run.restore(training)
        steps = train_body(training, data, config.body, seed, engine=engine)
        _finish(run, training, steps, config, config.body.images, config.body.batch, report)


def _finish(
    run: Run,
    training: Training,
    steps: Iterator[Step],
    config: StudyConfig,
    total: int,
    batch: int,
    report: Report | None,
) -> None:
    for _ in run.drive(training, steps, total, report, batch=batch):
        pass
    ema = training.networks["ema"]
    # What was trained to name classes is kept without its head.
    network = denoiser_of(ema.denoiser if isinstance(ema, BodyClassifier) else ema)
    if run.engine.main:
        path = run.snapshot_path(training.images)
        save_denoiser(path, network, sigma_init=config.distill.sigma_init, images=training.images)
    run.finish(**about(network, run))
    run.engine.wait()


CONTROLS: dict[str, Callable[[Path, StudyConfig, Engine, Report | None], None]] = {
    "single_sigma": _run_single_sigma,
    "band_sigma": _run_band_sigma,
    "map_regressed": lambda *where: _run_regressed("map_regressed", "one_step", *where),
    "map_regressed_ode": lambda *where: _run_regressed("map_regressed_ode", "ode", *where),
    "classifier_body": _run_body,
}
"""Networks other than the teacher that an initialisation can start from."""
