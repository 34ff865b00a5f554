"""The classifier's body: a denoiser's network trained on labels, never on noise (``classifier_body``).

Its features are learnt from the same images by another task. If a student that starts from them does as well
as one that starts from the teacher, then features of any kind help, and not those of denoising.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from featlens.denoiser import EDMDenoiser
from featlens.errors import UsageError
from featlens.weights import roles
from featlens_trainers.batches import Batches
from featlens_trainers.data import ImageData, as_data, read_ahead
from featlens_trainers.ema import Average, HalfLife, ema_copy
from featlens_trainers.engine import Engine
from featlens_trainers.networks.layers import group_norm, linear
from featlens_trainers.settings.initialisation import BodyConfig
from featlens_trainers.training import (
    Step,
    Training,
    learning_rate,
    seeded,
    set_learning_rate,
    stream,
    update,
)

__all__ = ["BodyClassifier", "start_body", "train_body"]


class BodyClassifier(nn.Module):
    """A denoiser's network with a class head on what its output layers would read.

    The features of the last decoder block are normed, passed through SiLU, averaged over positions and read
    out linearly. The output layers are not trained: they are not part of the body. Labels are never told to
    a conditional network.

    Parameters
    ----------
    denoiser
        Of which the network is trained in place.
    classes
        Number of classes K.
    sigma
        Noise level that the network is told, and by which its input is scaled.

    Examples
    --------
    >>> import torch
    >>> from featlens_trainers import UNetConfig, build_denoiser
    >>> body = BodyClassifier(build_denoiser(UNetConfig(channels=8), 0.5, seed=0), classes=10)
    >>> body(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, denoiser: EDMDenoiser, classes: int, sigma: float = 0.05) -> None:
        super().__init__()
        self.denoiser, self.sigma = denoiser, sigma
        self._output = _output_layers(denoiser)
        with torch.no_grad():
            some = next(denoiser.parameters()).new_zeros(1, *denoiser.sample_shape)
            width = _channels_first(self._features(some)).shape[1]
        self.head_norm = group_norm(width)
        self.head = linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, K) logits."""
        hidden = _channels_first(self._features(x))
        with torch.autocast(hidden.device.type, enabled=False):
            normed = functional.silu(self.head_norm(hidden.to(self.head.weight.dtype)))
            out: Tensor = self.head(normed.flatten(2).mean(2))
        return out

    def _features(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []

        def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append(arguments[0])

        handle = self.denoiser.get_submodule(self._output).register_forward_pre_hook(see)
        try:
            self.denoiser(x, torch.full((len(x),), self.sigma, device=x.device))
        finally:
            handle.remove()
        return seen[0]


def _channels_first(hidden: Tensor) -> Tensor:
    """(B, C, H, W) as it is, tokens (B, T, D) as (B, D, T)."""
    return hidden.transpose(1, 2) if hidden.ndim == 3 else hidden


def _output_layers(denoiser: EDMDenoiser) -> str:
    """Path of the first module that belongs to the output layers with all its tensors."""
    known = roles(denoiser)
    first = next((name for name, has in known.items() if "out" in has), None)
    if first is None:
        raise UsageError(
            "a classifier's body needs a network with output layers that featlens knows (unet, adm, dit, or "
            f"the names of diffusers), got a {type(denoiser.network).__name__}"
        )
    path = first.rpartition(".")[0]
    while (above := path.rpartition(".")[0]) and all(
        "out" in has for name, has in known.items() if name.startswith(f"{above}.")
    ):
        path = above
    return path


def start_body(denoiser: EDMDenoiser, classes: int, config: BodyConfig, seed: int = 0) -> Training:
    """Fresh state for :func:`train_body`; the network of ``denoiser`` is trained in place.

    Afterwards ``training.networks["ema"].denoiser.state_dict()`` is the source ``classifier_body``. The head
    is drawn from ``seed``.
    """
    if classes < 2:
        raise UsageError(
            f"the classifier's body: expected at least 2 classes to tell apart, got {classes}; use data with "
            "labels"
        )
    with seeded(seed, "body"):
        body = BodyClassifier(denoiser, classes, config.sigma)
    place = next(denoiser.parameters()).device
    optimizer = torch.optim.Adam(body.to(place).parameters(), betas=(0.9, 0.999), eps=1e-8, fused=True)
    average = Average("net", HalfLife(config.ema_half_life, config.ema_ramp))
    return Training({"net": body, "ema": ema_copy(body)}, {"net": optimizer}, {"ema": average})


def train_body(
    training: Training,
    data: ImageData | Tensor,
    config: BodyConfig,
    seed: int,
    labels: Tensor | None = None,
    engine: Engine | None = None,
) -> Iterator[Step]:
    """Train ``training`` in place with cross-entropy until ``config.images`` images were seen.

    Parameters
    ----------
    training
        From :func:`start_body`, or one that was saved.
    data
        Images in [-1, 1] with labels, or a tensor of images, (N, C, H, W).
    config, seed
        Settings; all randomness is a function of ``seed`` and the images seen.
    labels
        (N,) int64, with a tensor of images.
    engine
        Where and how to compute (default: where the network is, in float32, the batch at once). The body is
        not compiled.
    """
    body, optimizer = training.networks["net"], training.optimizers["net"]
    assert isinstance(body, BodyClassifier)
    data = as_data(data, labels)
    _require_fitting(body, data)
    engine = engine or Engine(next(body.parameters()).device)
    body.train()
    batches = Batches(len(data), config.batch, seed)
    places = engine.parts(config.batch)
    while training.images < config.images:
        images = training.images
        losses = _losses(body, data, batches(images), config, seed, images, engine)
        read_ahead(data, batches, images + config.batch, config.images, places)
        rate = learning_rate(images + config.batch, config.lr, config.ramp_images, config.images)
        set_learning_rate(optimizer, rate)
        loss = update(engine, optimizer, losses, "the loss of the classifier's body", images)
        training.advance(config.batch)
        yield Step(training.images, {"loss": loss})


def _losses(
    body: BodyClassifier,
    data: ImageData,
    rows: Tensor,
    config: BodyConfig,
    seed: int,
    images: int,
    engine: Engine,
) -> Iterator[Tensor]:
    """Loss of each of this process's parts of the batch."""
    noise = None
    if config.noised:
        noise = torch.randn((config.batch, *data.shape), generator=stream(seed, "body", images))
    for part in engine.parts(len(rows)):
        x, labels = data.batch(rows[part])
        assert labels is not None
        x = x.to(engine.device)
        if noise is not None:
            x = x + config.sigma * noise[part].to(engine.device)
        place = (part.start,) if part.start else ()
        with seeded(seed, "dropout", images, *place), engine.autocast():
            logits = body(x)
        yield functional.cross_entropy(logits, labels.to(engine.device))


def _require_fitting(body: BodyClassifier, data: ImageData) -> None:
    if tuple(data.shape) != tuple(body.denoiser.sample_shape):
        raise UsageError(
            f"the network is for images of shape {tuple(body.denoiser.sample_shape)}, the data has "
            f"{tuple(data.shape)}; set the network's in_channels, out_channels and resolution to the data's"
        )
    if not data.num_labels:
        raise UsageError(
            "the classifier's body is trained on labels, and the data has none; give labels, or leave out "
            "the initialisation 'classifier_body'"
        )
    if data.num_labels > body.head.out_features:
        raise UsageError(
            f"the data has {data.num_labels} classes and the classifier's body {body.head.out_features}; "
            f"start it with {data.num_labels}"
        )
