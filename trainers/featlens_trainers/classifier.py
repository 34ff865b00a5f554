"""The study's own small classifier: trained once on the training images, then measures image quality."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featlens_trainers.batches import Batches
from featlens_trainers.settings import ClassifierConfig
from featlens_trainers.training import (
    Step,
    Training,
    finite,
    learning_rate,
    optimise,
    set_learning_rate,
    stream,
)

__all__ = ["Classifier", "features_of", "start_classifier", "train_classifier"]


class Classifier(nn.Module):
    """Three convolutions, a pooled feature layer of width ``features`` and a linear read-out."""

    feature_scale: Tensor

    def __init__(self, channels: int, resolution: int, classes: int, features: int) -> None:
        super().__init__()
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
    def calibrate(self, images: Tensor) -> None:
        """Set the feature scale on the training images (N, C, H, W)."""
        self.feature_scale = self.hidden(images).square().mean().clamp_min(1e-12).rsqrt()


def start_classifier(classifier: Classifier) -> Training:
    """Fresh state for :func:`train_classifier`."""
    return Training({"net": classifier}, {"net": torch.optim.Adam(classifier.parameters())})


def train_classifier(
    training: Training, images: Tensor, labels: Tensor, config: ClassifierConfig, seed: int
) -> Iterator[Step]:
    """Train in place with cross-entropy, random shifts of up to one pixel and a little noise."""
    classifier, optimizer = training.networks["net"], training.optimizers["net"]
    classifier.train()
    batches = Batches(len(images), config.batch, seed)
    while training.images < config.images:
        rows = batches(training.images).to(images.device)
        numbers = stream(seed, "classifier", training.images)
        x = _augmented(images[rows], numbers)
        loss = functional.cross_entropy(classifier(x), labels[rows])
        value = finite(loss.detach(), "the classifier's loss", training.images)
        set_learning_rate(
            optimizer,
            learning_rate(training.images + config.batch, config.lr, 10 * config.batch, config.images),
        )
        optimise(optimizer, loss)
        training.count(config.batch)
        yield Step(training.images, {"loss": value})


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
