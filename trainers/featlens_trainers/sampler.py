"""Samplers: Heun's method on the probability-flow ODE, one-step generation, latents with per-image seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens.seeds import sample_noise

__all__ = ["OneStepGenerator", "generate", "heun_sample", "latents", "sigma_schedule"]


def sigma_schedule(steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's decreasing noise levels, (steps + 1,) float64, the last one 0 (arXiv 2206.00364, equation 5)."""
    index = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
    levels = (high ** (1 / rho) + index * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


@torch.no_grad()
def heun_sample(
    denoiser: nn.Module,
    z: Tensor,
    labels: Tensor | None = None,
    steps: int = 18,
    high: float = 80.0,
    low: float = 0.002,
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
    steps, high, low
        Number of steps, the first noise level, and the last one above 0.

    Examples
    --------
    Of a denoiser whose answer is always 0, all that is left is 0:

    >>> heun_sample(lambda x, sigma, labels: 0 * x, torch.ones(1, 1, 2, 2), steps=3).abs().max().item()
    0.0
    """
    if steps < 1 or not 0 < low < high:
        raise UsageError(
            f"sampling: expected at least one step and noise levels 0 < low < high, got steps = {steps}, "
            f"low = {low}, high = {high}"
        )
    levels: list[float] = sigma_schedule(steps, low, high).tolist()
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
    sampler: Callable[..., Tensor],
    count: int,
    shape: tuple[int, ...],
    seed: int,
    batch: int = 250,
    device: torch.device | str = "cpu",
    labels: Tensor | None = None,
) -> Tensor:
    """Images (count, *shape) on the CPU: ``sampler(z)`` of ``count`` seeded latents, batch by batch.

    With ``labels`` (count,) int64 it is ``sampler(z, labels)`` of each batch's own.
    """
    if labels is not None and len(labels) != count:
        raise UsageError(f"sampling: expected one label for each of {count} images, got {len(labels)}")
    return torch.cat(list(_batches(sampler, count, shape, seed, batch, device, labels)))


@torch.no_grad()
def _batches(
    sampler: Callable[..., Tensor],
    count: int,
    shape: tuple[int, ...],
    seed: int,
    batch: int,
    device: torch.device | str,
    labels: Tensor | None,
) -> Iterator[Tensor]:
    for first in range(0, count, batch):
        z = latents(seed, first, min(batch, count - first), shape).to(device)
        told = () if labels is None else (labels[first : first + batch].to(device),)
        yield sampler(z, *told).cpu()
