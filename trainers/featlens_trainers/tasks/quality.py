"""The study's classifier, and the quality that is measured in its features."""

from __future__ import annotations

from pathlib import Path

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
from featlens_trainers.initialisation import seeded
from featlens_trainers.quality import Quality, quality
from featlens_trainers.runs import Report, Run
from featlens_trainers.settings import StudyConfig
from featlens_trainers.tasks.common import data_of, image_shape, training_data

__all__ = ["features_of", "load_classifier", "measured", "reference_features", "run_classifier"]

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
    """Train the study's classifier on the training images and store it; the main process does it alone."""
    engine = engine or Engine(device)
    if engine.main:
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


def reference_features(classifier: Classifier, config: StudyConfig) -> NDArray[np.float64]:
    """Classifier features (N, d) of the held-out images."""
    held = data_of(config, "held-out")
    many = min(len(held), config.evaluation.reference)
    rows = torch.split(torch.arange(many), CHUNK)
    return np.concatenate([features_of(classifier, held.batch(part)[0]) for part in rows])


def measured(study: Path, config: StudyConfig, device: str, images: Tensor) -> Quality:
    """Distances of generated images (N, C, H, W) to the held-out ones."""
    classifier, _ = load_classifier(study, device)
    return quality(features_of(classifier, images), reference_features(classifier, config))
