"""Teachers: denoisers trained with EDM's loss, at all noise levels or one, and the regressed one-step map."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser, column
from featlens_trainers.batches import Batches
from featlens_trainers.ema import HalfLife, ema_copy
from featlens_trainers.noise import lognormal_sigma
from featlens_trainers.sampler import OneStepGenerator
from featlens_trainers.settings import RegressionConfig, TeacherConfig
from featlens_trainers.training import (
    Average,
    Step,
    Training,
    finite,
    learning_rate,
    optimise,
    seeded,
    set_learning_rate,
    stream,
)

__all__ = ["edm_loss", "regress_map", "start_teacher", "train_teacher"]


def edm_loss(
    denoiser: EDMDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Weighted denoising loss (arXiv 2206.00364, equation 2): mean over the batch of the sum over pixels.

    ``x0`` and ``noise`` (B, C, H, W), ``sigma`` (B,).
    """
    estimate = denoiser(x0 + column(sigma, x0) * noise, sigma, labels)
    weight = column(denoiser.scaling.loss_weight(sigma), x0)
    out: Tensor = (weight * (estimate - x0) ** 2).flatten(1).sum(1).mean()
    return out


def start_teacher(denoiser: EDMDenoiser, config: TeacherConfig | RegressionConfig) -> Training:
    """Fresh state for :func:`train_teacher` and :func:`regress_map`."""
    optimizer = torch.optim.Adam(denoiser.parameters(), betas=(0.9, 0.999), eps=1e-8, fused=True)
    average = Average("net", HalfLife(config.ema_half_life, config.ema_ramp))
    return Training({"net": denoiser, "ema": ema_copy(denoiser)}, {"net": optimizer}, {"ema": average})


def train_teacher(
    training: Training, images: Tensor, config: TeacherConfig, seed: int, labels: Tensor | None = None
) -> Iterator[Step]:
    """Train ``training`` in place until ``config.images`` images were seen, yielding each step.

    Parameters
    ----------
    training
        From :func:`start_teacher`, or one that was saved.
    images
        (N, C, H, W) in [-1, 1], on the device of the network.
    config, seed
        Settings; all randomness is a function of ``seed`` and the images seen.
    labels
        (N,) int64 for a conditional denoiser.
    """
    denoiser, optimizer = training.networks["net"], training.optimizers["net"]
    assert isinstance(denoiser, EDMDenoiser)
    denoiser.train()
    batches = Batches(len(images), config.batch, seed)
    while training.images < config.images:
        rows = batches(training.images).to(images.device)
        numbers = stream(seed, "teacher", training.images)
        x0 = images[rows]
        if config.sigma is None:
            sigma = lognormal_sigma(config.batch, config.p_mean, config.p_std, numbers)
        else:
            sigma = torch.full((config.batch,), config.sigma)
        noise = torch.randn(x0.shape, generator=numbers).to(x0.device)
        with seeded(seed, "dropout", training.images):
            loss = edm_loss(
                denoiser, x0, sigma.to(x0.device), noise, None if labels is None else labels[rows]
            )
        value = finite(loss.detach(), "the denoising loss", training.images)
        set_learning_rate(optimizer, _rate(training, config, config.images if config.decay else None))
        optimise(optimizer, loss)
        training.advance(config.batch)
        yield Step(training.images, {"loss": value})


def _rate(training: Training, config: TeacherConfig | RegressionConfig, total: int | None) -> float:
    return learning_rate(training.images + config.batch, config.lr, config.ramp_images, total)


def regress_map(
    training: Training,
    teacher: nn.Module,
    shape: tuple[int, ...],
    sigma_init: float,
    config: RegressionConfig,
    seed: int,
) -> Iterator[Step]:
    """Regress a network on the teacher's one-step map z -> D(sigma_init z; sigma_init), yielding each step.

    The result has the teacher's noise-to-image map at ``sigma_init`` but none of its weights: the control
    ``map_regressed``. Loss: squared error, mean over the batch of the sum over pixels.
    """
    student = OneStepGenerator(training.networks["net"], sigma_init).train()
    target = OneStepGenerator(teacher, sigma_init).eval()
    optimizer = training.optimizers["net"]
    device = next(teacher.parameters()).device
    while training.images < config.images:
        z = torch.randn((config.batch, *shape), generator=stream(seed, "map", training.images)).to(device)
        with torch.no_grad():
            wanted = target(z)
        with seeded(seed, "dropout", training.images):
            loss = ((student(z) - wanted) ** 2).flatten(1).sum(1).mean()
        value = finite(loss.detach(), "the regression loss", training.images)
        set_learning_rate(optimizer, _rate(training, config, config.images))
        optimise(optimizer, loss)
        training.advance(config.batch)
        yield Step(training.images, {"loss": value})
