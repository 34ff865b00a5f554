"""Score-free distillation of a one-step generator: the whole loop, to be read at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from featlens.denoiser import EDMDenoiser, column
from featlens_trainers.batches import Batches
from featlens_trainers.directions import DIVERGENCES, RatioDirection, ratio_loss
from featlens_trainers.ema import HalfLife, ema_copy
from featlens_trainers.networks.ratio import RatioNetwork
from featlens_trainers.noise import draw_sigma
from featlens_trainers.sampler import OneStepGenerator
from featlens_trainers.settings import DistillConfig
from featlens_trainers.training import (
    Average,
    Step,
    Training,
    finite,
    optimise,
    seeded,
    stream,
)

__all__ = ["distill", "start_distillation"]


def start_distillation(student: EDMDenoiser, ratio: RatioNetwork, config: DistillConfig) -> Training:
    """Fresh state for :func:`distill` from an initialised student and ratio network."""
    betas = (config.beta1, config.beta2)
    return Training(
        {"net": student, "ema": ema_copy(student), "ratio": ratio},
        {
            "net": torch.optim.Adam(student.parameters(), lr=config.lr, betas=betas, fused=True),
            "ratio": torch.optim.Adam(ratio.parameters(), lr=config.ratio_lr, betas=betas, fused=True),
        },
        {"ema": Average("net", HalfLife(config.ema_half_life, config.ema_ramp))},
    )


def distill(
    training: Training, images: Tensor, config: DistillConfig, seed: int, labels: Tensor | None = None
) -> Iterator[Step]:
    """Distil ``training`` in place until ``config.images`` images were seen, yielding each step.

    Each step draws latents z and a batch of real images, updates the ratio network on equally noised real and
    generated images, then moves the generator along the direction, weighted by sigma^2 (which makes the
    gradient D_data - D_student in image space, arXiv 2305.18455).

    Parameters
    ----------
    training
        From :func:`start_distillation`, or one that was saved.
    images
        Real images (N, C, H, W) in [-1, 1], on the device of the networks.
    config, seed
        Settings; all randomness is a function of ``seed`` and the images seen.
    labels
        (N,) int64 for a conditional student: each generated image takes the label of its real partner.
    """
    generator = OneStepGenerator(training.networks["net"], config.sigma_init).train()
    ratio = training.networks["ratio"].train()
    direction = RatioDirection(ratio, DIVERGENCES[config.divergence])
    batches = Batches(len(images), config.batch, seed)
    while training.images < config.images:
        rows = batches(training.images).to(images.device)
        numbers = stream(seed, "distill", training.images)
        real = images[rows]
        label = None if labels is None else labels[rows]
        with seeded(seed, "dropout", training.images):
            z = torch.randn(real.shape, generator=numbers).to(real.device)
            fake = generator(z, label)

            sigma, noise_real, noise_fake = _noise(real, config, numbers)
            noised_real = real + column(sigma, real) * noise_real
            noised_fake = fake.detach() + column(sigma, real) * noise_fake
            logits = ratio(
                torch.cat([noised_real, noised_fake]),
                sigma.repeat(2),
                None if label is None else label.repeat(2),
            )
            real_logit, fake_logit = logits.chunk(2)
            loss = ratio_loss(real_logit, fake_logit)
            metrics = {
                "ratio_loss": finite(loss.detach(), "the ratio network's loss", training.images),
                "h_real": float(real_logit.detach().mean()),
                "h_fake": float(fake_logit.detach().mean()),
            }
            optimise(training.optimizers["ratio"], loss)

            sigma, _, noise = _noise(real, config, numbers)
            noised = fake + column(sigma, fake) * noise
            gradient = column(sigma**2, fake) * direction.gradient(noised, sigma, label)
            metrics["gradient_norm"] = finite(
                gradient.flatten(1).norm(dim=1).mean(), "the generator's gradient", training.images
            )
            optimise(training.optimizers["net"], (gradient * noised).flatten(1).sum(1).mean())
        training.advance(config.batch)
        yield Step(training.images, metrics)


def _noise(like: Tensor, config: DistillConfig, numbers: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noise levels (B,) and two noise draws (B, C, H, W)."""
    sigma = draw_sigma(config.noise, len(like), numbers).to(like.device)
    first = torch.randn(like.shape, generator=numbers).to(like.device)
    second = torch.randn(like.shape, generator=numbers).to(like.device)
    return sigma, first, second
