"""Draws of noise levels: what :class:`featlens_trainers.settings.NoiseConfig` describes."""

from __future__ import annotations

import torch
from torch import Tensor

from featlens_trainers.settings import NoiseConfig

__all__ = ["draw_sigma", "lognormal_sigma"]


def lognormal_sigma(batch: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """(batch,) noise levels, ln sigma ~ N(mean, std^2), stratified: one draw from each ``batch``-quantile."""
    normal = torch.special.ndtri(_quantiles(batch, generator).clamp(1e-7, 1 - 1e-7))
    order = torch.randperm(batch, generator=generator)
    out: Tensor = (mean + std * normal[order]).exp().float()
    return out


def _quantiles(batch: int, generator: torch.Generator) -> Tensor:
    """One uniform draw from each of ``batch`` equal parts of (0, 1), ascending, float64."""
    return (torch.arange(batch) + torch.rand(batch, generator=generator, dtype=torch.float64)) / batch


def draw_sigma(noise: NoiseConfig, batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) float32 noise levels on the CPU, stratified, in random order."""
    if noise.kind == "lognormal" and noise.low is None and noise.high is None:
        return lognormal_sigma(batch, noise.mean, noise.std, generator)
    raise NotImplementedError
