"""The trainings of a study, each an ordinary resumable run: classifier, teacher, controls, students.

Every task finds what it needs in the study's folder and leaves its own folder there; running a finished task
again does nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import FeatlensError
from featlens.files import write_bytes
from featlens.samples import SampleSet
from featlens.seeds import derive
from featlens_trainers.classifier import Classifier, features_of, start_classifier, train_classifier
from featlens_trainers.config import to_mapping
from featlens_trainers.distillation import distill, start_distillation
from featlens_trainers.initialisation import (
    build_denoiser,
    initialise_ratio,
    initialise_student,
    seeded,
    student_seed,
)
from featlens_trainers.networks import RatioNetwork
from featlens_trainers.quality import Quality, quality
from featlens_trainers.runs import Report, Run, crossed, device_name, newest_snapshot
from featlens_trainers.sampler import OneStepGenerator, generate, heun_sample
from featlens_trainers.settings import InitSpec, StudyConfig
from featlens_trainers.snapshots import (
    load_denoiser,
    load_weights,
    read_tensors,
    save_denoiser,
    write_tensors,
)
from featlens_trainers.teacher import regress_map, start_teacher, train_teacher
from featlens_trainers.training import Training

__all__ = [
    "StudentSpec",
    "data_of",
    "evaluation_images",
    "load_classifier",
    "reference_features",
    "run_classifier",
    "run_map_regressed",
    "run_single_sigma",
    "run_student",
    "run_teacher",
]


@dataclass(frozen=True)
class StudentSpec:
    """One student of a study."""

    init: str
    ratio: str
    divergence: str
    seed: int

    @property
    def name(self) -> str:
        """Folder name: ``student-<init>-<ratio init>-<divergence>-s<seed>``."""
        return f"student-{self.init}-{self.ratio}-{self.divergence}-s{self.seed}"


def data_of(config: StudyConfig, split: str) -> SampleSet:
    """Images of the study's data set."""
    return SampleSet.load(config.data, seed=config.seed, split=split)


def _training_images(config: StudyConfig, device: str) -> tuple[Tensor, Tensor]:
    samples = data_of(config, "train")
    assert samples.labels is not None
    return torch.from_numpy(samples.images).to(device), torch.from_numpy(samples.labels).to(device)


def _shape(config: StudyConfig) -> tuple[int, ...]:
    return (config.network.in_channels, config.network.resolution, config.network.resolution)


# --- classifier ---------------------------------------------------------------------------------------------


def _classifier_shape(config: StudyConfig) -> dict[str, int]:
    return {
        "channels": config.network.in_channels,
        "resolution": config.network.resolution,
        "classes": 10,
        "features": config.classifier.features,
    }


def run_classifier(study: Path, config: StudyConfig, device: str, report: Report | None = None) -> None:
    """Train the study's classifier on the training images and store it."""
    settings = {"data": config.data, "seed": config.seed, "classifier": to_mapping(config.classifier)}
    with Run(study / "classifier", "classifier", settings) as run:
        if run.done:
            return
        images, labels = _training_images(config, device)
        with seeded(config.seed, "classifier"):
            classifier = Classifier(**_classifier_shape(config)).to(device)
        training = start_classifier(classifier)
        run.restore(training)
        steps = train_classifier(training, images, labels, config.classifier, config.seed)
        for _ in run.drive(
            training, steps, config.classifier.images, report, save_every=32_000, log_every=6_400
        ):
            pass
        classifier.eval()
        classifier.calibrate(images)
        held = data_of(config, "held-out")
        with torch.no_grad():
            guess = classifier(torch.from_numpy(held.images).to(device)).argmax(1).cpu().numpy()
        about = {"kind": "classifier", "data": config.data, "seed": config.seed, **_classifier_shape(config)}
        write_tensors(run.folder / "classifier.safetensors", classifier.state_dict(), about)
        run.finish(held_out_accuracy=float((guess == held.labels).mean()), digest=weights_digest(classifier))


def load_classifier(study: Path, device: str) -> tuple[Classifier, dict[str, Any]]:
    """The classifier stored in a study's folder, in evaluation mode, and the facts stored with it."""
    path = study / "classifier" / "classifier.safetensors"
    if not path.exists():
        raise FeatlensError(
            f"{study} holds no classifier to measure quality with; "
            "run 'featlens study' or 'featlens train' there"
        )
    tensors, about = read_tensors(path)
    if about.get("kind") != "classifier":
        raise FeatlensError(f"{path} holds a {about.get('kind')!r}, expected a classifier")
    with seeded(0):
        classifier = Classifier(
            **{key: int(about[key]) for key in ("channels", "resolution", "classes", "features")}
        )
    load_weights(classifier, tensors, path)
    return classifier.to(device).eval(), about


def reference_features(classifier: Classifier, config: StudyConfig) -> NDArray[np.float64]:
    """Classifier features (N, d) of the held-out images."""
    return features_of(classifier, torch.from_numpy(data_of(config, "held-out").images))


def evaluation_images(
    sampler: Callable[[Tensor], Tensor], config: StudyConfig, device: str, count: int | None = None
) -> Tensor:
    """Images from the study's evaluation latents, the same for every model."""
    many = config.evaluation.images if count is None else count
    return generate(sampler, many, _shape(config), derive(config.seed, "evaluation"), device=device)


# --- teacher and controls -----------------------------------------------------------------------------------


def run_teacher(study: Path, config: StudyConfig, device: str, report: Report | None = None) -> None:
    """Train the teacher; its quality is that of Heun samples of its average."""
    settings = _network_settings(config) | {
        "teacher": to_mapping(config.teacher),
        "classifier": weights_digest(load_classifier(study, device)[0]),
    }
    with Run(study / "teacher", "teacher", settings) as run:
        if run.done:
            return
        images, _ = _training_images(config, device)
        training = start_teacher(
            build_denoiser(config.network, config.sigma_data, config.seed).to(device), config.teacher
        )
        run.restore(training)
        steps = train_teacher(training, images, config.teacher, config.seed)
        for _ in run.drive(training, steps, config.teacher.images, report):
            pass
        ema = training.networks["ema"]
        assert isinstance(ema, EDMDenoiser)
        save_denoiser(run.snapshot_path(training.images), ema, sigma_init=config.distill.sigma_init)
        if report is not None:
            report(config.teacher.images, config.teacher.images, "sampling")
        steps_of = config.evaluation.heun_steps
        heun = evaluation_images(lambda z: heun_sample(ema, z, steps=steps_of), config, device)
        one_step = evaluation_images(OneStepGenerator(ema, config.distill.sigma_init), config, device)
        real = images[: config.evaluation.images].cpu()
        measured = {
            key: _measured(study, config, device, shown)
            for key, shown in {"heun": heun, "one_step": one_step, "training_images": real}.items()
        }
        _keep_samples(run, heun[: config.evaluation.grid**2])
        run.finish(quality={key: asdict(value) for key, value in measured.items()}, **_about(ema, device))


def run_single_sigma(study: Path, config: StudyConfig, device: str, report: Report | None = None) -> None:
    """Train the control ``single_sigma``: the teacher's training at sigma_init alone, same images seen."""
    from dataclasses import replace

    settings = replace(config.teacher, sigma=config.distill.sigma_init)
    with Run(
        study / "single_sigma", "single_sigma", _network_settings(config) | {"teacher": to_mapping(settings)}
    ) as run:
        if run.done:
            return
        images, _ = _training_images(config, device)
        training = start_teacher(
            build_denoiser(config.network, config.sigma_data, config.seed).to(device), settings
        )
        run.restore(training)
        for _ in run.drive(
            training, train_teacher(training, images, settings, config.seed), settings.images, report
        ):
            pass
        _finish_control(run, training, config, device)


def run_map_regressed(study: Path, config: StudyConfig, device: str, report: Report | None = None) -> None:
    """Train the control ``map_regressed``: a random network regressed on the teacher's one-step map."""
    teacher, _ = load_denoiser(newest_snapshot(study / "teacher"), device)
    sigma_init = config.distill.sigma_init
    settings = _network_settings(config) | {
        "regression": to_mapping(config.regression),
        "sigma_init": sigma_init,
        "teacher": weights_digest(teacher),
    }
    with Run(study / "map_regressed", "map_regressed", settings) as run:
        if run.done:
            return
        seed = derive(config.seed, "map_regressed")
        training = start_teacher(
            build_denoiser(config.network, config.sigma_data, seed).to(device), config.regression
        )
        run.restore(training)
        steps = regress_map(training, teacher, _shape(config), sigma_init, config.regression, seed)
        for _ in run.drive(training, steps, config.regression.images, report):
            pass
        _finish_control(run, training, config, device)


def _finish_control(run: Run, training: Training, config: StudyConfig, device: str) -> None:
    ema = training.networks["ema"]
    assert isinstance(ema, EDMDenoiser)
    save_denoiser(run.snapshot_path(training.images), ema, sigma_init=config.distill.sigma_init)
    run.finish(**_about(ema, device))


def _network_settings(config: StudyConfig) -> dict[str, Any]:
    return {
        "data": config.data,
        "seed": config.seed,
        "sigma_data": config.sigma_data,
        "network": to_mapping(config.network),
    }


def _about(network: EDMDenoiser, device: str) -> dict[str, Any]:
    return {"weights_digest": weights_digest(network), "device": device_name(device)}


def _measured(study: Path, config: StudyConfig, device: str, images: Tensor) -> Quality:
    classifier, _ = load_classifier(study, device)
    return quality(features_of(classifier, images), reference_features(classifier, config))


def _keep_samples(run: Run, images: Tensor) -> None:
    """Store images (N, C, H, W) for the report."""
    buffer = io.BytesIO()
    np.save(buffer, images.numpy(), allow_pickle=False)
    write_bytes(run.folder / "samples.npy", buffer.getvalue())


# --- students -----------------------------------------------------------------------------------------------


def _sources(study: Path, init: InitSpec, device: str) -> dict[str, EDMDenoiser]:
    """Networks that an initialisation takes weights from, by name."""
    wanted = (
        {"teacher"}
        if init.ratio == "teacher" or init.student in ("teacher", "features_only", "prior_only")
        else set()
    )
    if init.student in ("single_sigma", "map_regressed"):
        wanted.add(init.student)
    out: dict[str, EDMDenoiser] = {}
    for name in sorted(wanted):
        if not (study / name / "run.json").exists():
            raise FeatlensError(
                f"initialisation {init.student!r} needs the run {study / name}, which is not there; "
                "train it first"
            )
        out[name] = load_denoiser(newest_snapshot(study / name), device)[0]
    return out


def run_student(
    study: Path, config: StudyConfig, device: str, spec: StudentSpec, report: Report | None = None
) -> None:
    """Distil one student, measuring its quality at evaluation points spread evenly over the run."""
    from dataclasses import replace

    init = InitSpec(spec.init, spec.ratio)
    settings = replace(config.distill, divergence=spec.divergence)
    sources = _sources(study, init, device)
    described = _network_settings(config) | {
        "distill": to_mapping(settings),
        "init": to_mapping(init),
        "student_seed": spec.seed,
        "sources": {name: weights_digest(network) for name, network in sources.items()},
        "evaluation": to_mapping(config.evaluation),
        "classifier": weights_digest(load_classifier(study, device)[0]),
    }
    with Run(study / spec.name, "student", described) as run:
        if run.done:
            return
        seed = student_seed(config, spec.seed)
        student = build_denoiser(config.network, config.sigma_data, seed).to(device)
        with seeded(seed, "ratio"):
            ratio = RatioNetwork(config.network, config.sigma_data).to(device)
        weights = {name: network.state_dict() for name, network in sources.items()}
        origins = {
            "student": initialise_student(student, init, weights, seed),
            "ratio": initialise_ratio(ratio, init, weights),
        }
        training = start_distillation(student, ratio, settings)
        run.restore(training)
        evaluate = _Evaluation(
            study, config, device, run, OneStepGenerator(training.networks["ema"], settings.sigma_init)
        )
        if training.images == 0:
            initial = run.snapshot_path(0)
            save_denoiser(initial, student, sigma_init=settings.sigma_init, step="initial")
            evaluate(0)
        images, _ = _training_images(config, device)
        steps = distill(training, images, settings, seed)
        every = max(settings.images // config.evaluation.times, 1)
        for step in _evaluated(run, training, steps, settings.images, every, evaluate, report):
            del step
        ema = training.networks["ema"]
        assert isinstance(ema, EDMDenoiser)
        save_denoiser(run.snapshot_path(training.images), ema, sigma_init=settings.sigma_init)
        _keep_samples(run, evaluate.last[: config.evaluation.grid**2])
        run.finish(quality=evaluate.result.to_dict(), origins=_counts(origins), **_about(ema, device))


class _Evaluation:
    """Measures the current student and logs the result."""

    def __init__(
        self, study: Path, config: StudyConfig, device: str, run: Run, generator: OneStepGenerator
    ) -> None:
        self._config, self._device, self._run, self._generator = config, device, run, generator
        self._classifier, _ = load_classifier(study, device)
        self._reference = reference_features(self._classifier, config)
        self.last: Tensor
        self.result: Quality

    def __call__(self, images: int) -> None:
        self.last = evaluation_images(self._generator, self._config, self._device)
        self.result = quality(features_of(self._classifier, self.last), self._reference)
        self._run.log(images, frechet=self.result.frechet, kid=self.result.kid)


def _evaluated(
    run: Run,
    training: Training,
    steps: Iterator[Any],
    total: int,
    every: int,
    evaluate: _Evaluation,
    report: Report | None,
) -> Iterator[Any]:
    for step in run.drive(training, steps, total, report, save_every=6_400):
        if step.images >= total or (
            crossed(step.images, every, training) and total - step.images > every // 2
        ):
            evaluate(step.images)
        yield step


def _counts(origins: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {}
    for network, tensors in origins.items():
        out[network] = {}
        for origin in tensors.values():
            out[network][origin] = out[network].get(origin, 0) + 1
    return out
