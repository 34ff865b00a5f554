"""What the distillation loop asks of a direction, and what it hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from featlens.denoiser import Preconditioning, column

__all__ = ["Direction", "Noised", "denoising_loss"]


@dataclass(frozen=True)
class Noised:
    """Images with noise: ``x = clean + sigma * noise``.

    Attributes
    ----------
    clean, x
        (B, C, H, W), both without a graph.
    sigma
        (B,) noise levels.
    labels
        (B,) int64 or None.
    """

    clean: Tensor
    x: Tensor
    sigma: Tensor
    labels: Tensor | None = None

    @classmethod
    def of(cls, clean: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None = None) -> Noised:
        """``clean`` (detached) with ``sigma`` times ``noise`` added."""
        held = clean.detach()
        return cls(held, held + column(sigma, held) * noise, sigma, labels)


class Direction(Protocol):
    """A critic that learns from real and generated images, and the gradient it gives a generator.

    The loop never lets a gradient reach a network that is not updated: all it takes from a direction is the
    critic's loss in one update, and numbers in image space in the other.
    """

    critic: str
    """Name of the critic in ``training.networks`` and ``training.optimizers``."""

    def critic_loss(self, real: Noised, fake: Noised) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Loss of the critic on equally noised real and generated images, and scalars to log."""

    def image_gradient(self, fake: Noised) -> Tensor:
        """(B, C, H, W) gradient of each sample's loss in its generated image, weight included."""


def denoising_loss(estimate: Tensor, sample: Noised, sigma_data: float) -> Tensor:
    """EDM's weighted loss (arXiv 2206.00364, equation 2): mean over the batch of the sum over pixels."""
    weight = column(Preconditioning(sigma_data).loss_weight(sample.sigma), estimate)
    out: Tensor = (weight * (estimate - sample.clean) ** 2).flatten(1).sum(1).mean()
    return out
