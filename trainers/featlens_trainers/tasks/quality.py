"""The study's classifier, and the quality that is measured in its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featlens.denoiser import weights_digest
from featlens_trainers.classifier import (
    Classifier,
    accuracy_of,
    features_of,
    load_classifier,
    save_classifier,
    start_classifier,
    train_classifier,
)
from featlens_trainers.config import to_mapping
from featlens_trainers.engine import Engine
from featlens_trainers.evaluation.extractors import load_extractor
from featlens_trainers.initialisation import seeded
from featlens_trainers.quality import Quality, quality
from featlens_trainers.runs import Report, Run
from featlens_trainers.settings import StudyConfig
from featlens_trainers.tasks.common import data_of, image_shape, look_at, training_data

__all__ = ["Judge", "judge_identity", "judge_of", "load_classifier", "reference_features", "run_classifier"]

CHUNK = 500
"""Images whose features are computed at once."""


def _classifier_shape(config: StudyConfig, classes: int) -> dict[str, int]:
    channels, resolution, _ = image_shape(config)
    return {
        "channels": channels,
        "resolution": resolution,
        "classes": classes,
        "features": config.classifier.features,
    }


def run_classifier(
    study: Path, config: StudyConfig, device: str, report: Report | None = None, engine: Engine | None = None
) -> None:
    """Train the study's classifier on the training images and store it; the main process does it alone.

    None is needed where the settings name an extractor, and none can be trained on images without labels.
    """
    engine = engine or Engine(device)
    wanted = config.evaluation.extractor is None and _has_labels(config)
    if engine.main and wanted:
        _train(study, config, str(engine.device), report)
    engine.wait()


def _train(study: Path, config: StudyConfig, device: str, report: Report | None) -> None:
    settings = {"data": config.data, "seed": config.seed, "classifier": to_mapping(config.classifier)}
    with Run(study / "classifier", "classifier", settings) as run:
        if run.done:
            return
        data = training_data(config, device)
        with seeded(config.seed, "classifier"):
            classifier = Classifier(**_classifier_shape(config, data.num_labels)).to(device)
        training = start_classifier(classifier)
        run.restore(training)
        steps = train_classifier(training, data, config.classifier, config.seed)
        for _ in run.drive(
            training, steps, config.classifier.images, report, save_every=32_000, log_every=6_400
        ):
            pass
        classifier.eval()
        # The scale needs no more than some thousands of images.
        classifier.calibrate(data.batch(torch.arange(min(len(data), 10_000)))[0])
        path = run.folder / "classifier.safetensors"
        save_classifier(path, classifier, data=config.data, seed=config.seed)
        accuracy = accuracy_of(classifier, data_of(config, "held-out"))
        run.finish(held_out_accuracy=accuracy, digest=weights_digest(classifier))


def reference_features(
    extractor: Callable[[Tensor], NDArray[Any]], config: StudyConfig
) -> NDArray[np.float64]:
    """Features (N, d) of the held-out images."""
    held = data_of(config, "held-out")
    many = min(len(held), config.evaluation.reference)
    rows = torch.split(torch.arange(many), CHUNK)
    return np.concatenate([extractor(held.batch(part)[0]) for part in rows])


@dataclass(frozen=True)
class Judge:
    """What a study measures quality with: features of images, and those of the held-out images.

    Attributes
    ----------
    extractor
        Images (N, C, H, W) -> features (N, d).
    reference
        (M, d) of the held-out images.
    """

    extractor: Callable[[Tensor], NDArray[Any]]
    reference: NDArray[np.float64]

    def __call__(self, images: Tensor) -> Quality:
        """Distances of generated images (N, C, H, W) to the held-out ones."""
        features = np.concatenate([self.extractor(part) for part in torch.split(images, CHUNK)])
        return quality(features, self.reference)


def judge_of(study: Path, config: StudyConfig, device: str) -> Judge | None:
    """The user's extractor, else the study's classifier; None where the data has no labels to train one."""
    extractor: Callable[[Tensor], NDArray[Any]]
    if config.evaluation.extractor is not None:
        extractor = load_extractor(config.evaluation.extractor, device)
    elif (study / "classifier" / "classifier.safetensors").exists() or _has_labels(config):
        extractor = partial(features_of, load_classifier(study, device)[0])
    else:
        return None
    return Judge(extractor, reference_features(extractor, config))


def judge_identity(study: Path, config: StudyConfig) -> dict[str, str]:
    """What a run records of how its quality was measured."""
    if config.evaluation.extractor is not None:
        return {"extractor": load_extractor(config.evaluation.extractor).digest}
    if (study / "classifier" / "classifier.safetensors").exists() or _has_labels(config):
        return {"classifier": weights_digest(load_classifier(study, "cpu")[0])}
    return {}


def _has_labels(config: StudyConfig) -> bool:
    return look_at(config).num_labels > 0
