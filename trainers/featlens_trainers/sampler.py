"""Samplers: Heun's method on the probability-flow ODE, one-step generation, latents with per-image seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from featlens.seeds import sample_noise

__all__ = ["OneStepGenerator", "generate", "heun_sample", "latents", "sigma_schedule"]


def sigma_schedule(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's decreasing noise levels, (steps + 1,) float64, the last one 0 (arXiv 2206.00364, equation 5)."""
    index = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    levels = (high ** (1 / rho) + index * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


@torch.no_grad()
def heun_sample(
    denoiser: nn.Module, z: Tensor, labels: Tensor | None = None, steps: int = 18, high: float = 80.0
) -> Tensor:
    """Images by Heun's second-order method (arXiv 2206.00364, algorithm 1), 2 steps - 1 evaluations.

    Parameters
    ----------
    denoiser
        Called as ``denoiser(x, sigma, labels)``.
    z
        (B, C, H, W) standard normal.
    labels
        (B,) int64 for a conditional denoiser.
    steps, high
        Number of steps and the first noise level.
    """
    levels: list[float] = sigma_schedule(steps, high=high).tolist()
    x = z * levels[0]

    def slope(at: Tensor, level: float) -> Tensor:
        out: Tensor = (at - denoiser(at, at.new_full((len(at),), level), labels)) / level
        return out

    for now, then in pairwise(levels):
        first = slope(x, now)
        euler = x + (then - now) * first
        x = euler if then == 0 else x + (then - now) * 0.5 * (first + slope(euler, then))
    return x


class OneStepGenerator(nn.Module):
    """Student ``G(z) = D(sigma_init z; sigma_init)``: the teacher's architecture called once."""

    def __init__(self, denoiser: nn.Module, sigma_init: float = 2.5) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigma_init = sigma_init

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) standard normal -> (B, C, H, W) images."""
        out: Tensor = self.denoiser(self.sigma_init * z, z.new_full((len(z),), self.sigma_init), labels)
        return out


def latents(seed: int, first: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents of images ``first .. first + count - 1``; image i depends on (seed, i) only."""
    return torch.from_numpy(sample_noise(seed, np.arange(first, first + count), 0.0, shape))


def generate(
    sampler: Callable[[Tensor], Tensor],
    count: int,
    shape: tuple[int, ...],
    seed: int,
    batch: int = 250,
    device: str = "cpu",
) -> Tensor:
    """Apply ``sampler(z)`` to ``count`` seeded latents, (count, *shape) on the CPU."""
    return torch.cat(list(_batches(sampler, count, shape, seed, batch, device)))


@torch.no_grad()
def _batches(
    sampler: Callable[[Tensor], Tensor],
    count: int,
    shape: tuple[int, ...],
    seed: int,
    batch: int,
    device: str,
) -> Iterator[Tensor]:
    for first in range(0, count, batch):
        z = latents(seed, first, min(batch, count - first), shape).to(device)
        yield sampler(z).cpu()
