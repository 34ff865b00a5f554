"""The study's own small classifier: trained once on the training images, then measures image quality."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.batches import Batches
from featlens_trainers.data import ImageData, as_data, read_ahead
from featlens_trainers.settings import ClassifierConfig
from featlens_trainers.snapshots import load_weights, read_tensors, write_tensors
from featlens_trainers.training import (
    Step,
    Training,
    finite,
    learning_rate,
    optimise,
    seeded,
    set_learning_rate,
    stream,
)

__all__ = [
    "Classifier",
    "accuracy_of",
    "features_of",
    "load_classifier",
    "save_classifier",
    "start_classifier",
    "train_classifier",
]


class Classifier(nn.Module):
    """Three convolutions, a pooled feature layer of width ``features`` and a linear read-out."""

    feature_scale: Tensor

    def __init__(self, channels: int, resolution: int, classes: int, features: int) -> None:
        super().__init__()
        self.shape = {
            "channels": channels,
            "resolution": resolution,
            "classes": classes,
            "features": features,
        }
        self.conv0 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, stride=2)
        self.feature = nn.Linear(64 * (-(-resolution // 4)) ** 2, features)
        self.head = nn.Linear(features, classes)
        self.register_buffer("feature_scale", torch.ones(()))

    def hidden(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, features), after the last non-linearity."""
        for layer in (self.conv0, self.conv1, self.conv2):
            x = functional.relu(layer(x))
        out: Tensor = functional.relu(self.feature(x.flatten(1)))
        return out

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, features), scaled so that the training images have mean square 1."""
        out: Tensor = self.hidden(x) * self.feature_scale
        return out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes) logits."""
        out: Tensor = self.head(self.hidden(x))
        return out

    @torch.no_grad()
    def calibrate(self, data: ImageData | Tensor, batch: int = 1000) -> None:
        """Set the feature scale on the training images: (N, C, H, W) at once, or data read in batches."""
        if isinstance(data, Tensor):
            self.feature_scale = self.hidden(data).square().mean().clamp_min(1e-12).rsqrt()
            return
        total = torch.zeros((), dtype=torch.float64, device=self.feature_scale.device)
        for rows in torch.split(torch.arange(len(data)), batch):
            hidden = self.hidden(data.batch(rows)[0].to(total.device))
            total += hidden.double().square().mean(1).sum()
        self.feature_scale = (total / len(data)).clamp_min(1e-12).rsqrt().float()


def start_classifier(classifier: Classifier) -> Training:
    """Fresh state for :func:`train_classifier`."""
    return Training({"net": classifier}, {"net": torch.optim.Adam(classifier.parameters())})


def train_classifier(
    training: Training,
    data: ImageData | Tensor,
    config: ClassifierConfig,
    seed: int,
    labels: Tensor | None = None,
) -> Iterator[Step]:
    """Train in place with cross-entropy, random shifts of up to one pixel and a little noise.

    Parameters
    ----------
    training
        From :func:`start_classifier`.
    data
        Labelled images in [-1, 1], or a tensor (N, C, H, W) of them with ``labels`` (N,).
    config, seed
        Length and learning rate; seed of the order, shifts and noise.
    labels
        (N,) int64 where ``data`` is a tensor.
    """
    classifier, optimizer = training.networks["net"], training.optimizers["net"]
    data = as_data(data, labels)
    _require_fit(classifier, data)
    device = next(classifier.parameters()).device
    classifier.train()
    batches = Batches(len(data), config.batch, seed)
    while training.images < config.images:
        images, truth = data.batch(batches(training.images))
        assert truth is not None
        read_ahead(data, batches, training.images + config.batch, config.images)
        numbers = stream(seed, "classifier", training.images)
        x = _augmented(images.to(device), numbers)
        loss = functional.cross_entropy(classifier(x), truth.to(device))
        value = finite(loss.detach(), "the classifier's loss", training.images)
        set_learning_rate(
            optimizer,
            learning_rate(training.images + config.batch, config.lr, 10 * config.batch, config.images),
        )
        optimise(optimizer, loss)
        training.count(config.batch)
        yield Step(training.images, {"loss": value})


def _require_fit(classifier: nn.Module, data: ImageData) -> None:
    """Refuse images without labels, of another shape, or of more classes than there are logits."""
    if not data.num_labels:
        raise UsageError(
            "the quality classifier needs labelled images, these have no labels; give labels, or measure "
            "quality in features of your own with featlens evaluate --extractor"
        )
    if not isinstance(classifier, Classifier):
        return
    size, classes = classifier.shape["resolution"], classifier.shape["classes"]
    wanted = (classifier.shape["channels"], size, size)
    if tuple(data.shape) != wanted:
        raise UsageError(
            f"the classifier takes images of shape {wanted}, the data has {tuple(data.shape)}; "
            "build it for the data"
        )
    if data.num_labels > classes:
        raise UsageError(
            f"the classifier tells {classes} classes apart, the data has {data.num_labels}; "
            "build it with as many classes"
        )


def _augmented(x: Tensor, numbers: torch.Generator) -> Tensor:
    down, right = (int(torch.randint(-1, 2, (), generator=numbers)) for _ in range(2))
    padded = functional.pad(x, (1, 1, 1, 1), value=-1.0)
    height, width = x.shape[2:]
    shifted = padded[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
    return shifted + 0.1 * torch.randn(x.shape, generator=numbers).to(x.device)


@torch.no_grad()
def features_of(classifier: Classifier, images: Tensor, batch: int = 500) -> NDArray[np.float64]:
    """(N, C, H, W) images on any device -> (N, features) float64."""
    device = next(classifier.parameters()).device
    classifier.eval()
    parts = [classifier.features(part.to(device)).cpu() for part in torch.split(images, batch)]
    return np.asarray(torch.cat(parts).double().numpy())


@torch.no_grad()
def accuracy_of(classifier: Classifier, data: ImageData, batch: int = 500) -> float:
    """Share of labelled images whose class the classifier names, read in batches."""
    device = next(classifier.parameters()).device
    classifier.eval()
    right = 0
    for rows in torch.split(torch.arange(len(data)), batch):
        images, truth = data.batch(rows)
        assert truth is not None
        right += int((classifier(images.to(device)).argmax(1) == truth.to(device)).sum())
    return right / len(data)


def save_classifier(path: Path, classifier: Classifier, **about: Any) -> None:
    """Write the classifier with its shape; ``about`` adds facts such as the data that it was trained on."""
    write_tensors(path, classifier.state_dict(), {"kind": "classifier", **about, **classifier.shape})


def load_classifier(study: Path, device: str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """The classifier stored in a study's folder, in evaluation mode, and the facts stored with it."""
    path = study / "classifier" / "classifier.safetensors"
    if not path.exists():
        raise FeatlensError(
            f"{study} holds no classifier to measure quality with; "
            "run 'featlens study' or 'featlens train' there, or give features with --extractor"
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
