"""Draws of noise levels: what :class:`featlens_trainers.settings.NoiseConfig` describes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featlens_trainers.settings import NoiseConfig

__all__ = ["draw_sigma", "lognormal_sigma"]


def lognormal_sigma(
    batch: int,
    mean: float,
    std: float,
    generator: torch.Generator,
    low: float | None = None,
    high: float | None = None,
) -> Tensor:
    """(batch,) noise levels, ln sigma ~ N(mean, std^2), stratified: one draw from each ``batch``-quantile.

    With ``low`` or ``high`` the distribution is cut there, and the quantiles are those of what is left.
    """
    uniform = _quantiles(batch, generator)
    below_low, below_high = NoiseConfig("lognormal", mean, std, low, high).quantiles
    if low is not None or high is not None:
        uniform = below_low + (below_high - below_low) * uniform
    normal = torch.special.ndtri(uniform.clamp(1e-7, 1 - 1e-7))
    order = torch.randperm(batch, generator=generator)
    sigma = (mean + std * normal[order]).exp()
    return _within(sigma, low, high)


def draw_sigma(noise: NoiseConfig, batch: int, generator: torch.Generator) -> Tensor:
    """(batch,) float32 noise levels on the CPU, stratified, in random order.

    >>> numbers = torch.Generator().manual_seed(0)
    >>> levels = draw_sigma(NoiseConfig("loguniform", low=0.1, high=10.0), 1000, numbers)
    >>> round(float(levels.log().mean().exp()), 2)
    1.0
    """
    if noise.kind == "lognormal":
        return lognormal_sigma(batch, noise.mean, noise.std, generator, noise.low, noise.high)
    if noise.kind == "fixed":
        return torch.full((batch,), noise.sigma)
    uniform = _quantiles(batch, generator)
    uniform = uniform[torch.randperm(batch, generator=generator)]
    low, high = noise.bounds
    if noise.kind == "loguniform":
        return _within((math.log(low) + uniform * math.log(high / low)).exp(), low, high)
    if noise.kind == "levels":
        allowed = noise.allowed_levels
        level = (uniform * len(allowed)).floor().clamp(max=len(allowed) - 1) + allowed.start
        along = level / max(noise.count - 1, 1)
    else:
        along = noise.first + (noise.last - noise.first) * uniform
    return _within(_curve(along, low, high, noise.rho), low, high)


def _quantiles(batch: int, generator: torch.Generator) -> Tensor:
    """One uniform draw from each of ``batch`` equal parts of (0, 1), ascending, float64."""
    return (torch.arange(batch) + torch.rand(batch, generator=generator, dtype=torch.float64)) / batch


def _curve(along: Tensor, low: float, high: float, rho: float) -> Tensor:
    """Noise level at a fraction of the curve of arXiv 2206.00364, equation 5, counted from low."""
    out: Tensor = (low ** (1 / rho) + along * (high ** (1 / rho) - low ** (1 / rho))) ** rho
    return out


def _within(sigma: Tensor, low: float | None, high: float | None) -> Tensor:
    """Float32 levels that rounding has not carried over a bound."""
    if low is None and high is None:
        return sigma.float()
    return sigma.clamp(low, high).float()
