"""Exponential moving average of weights, by half-life in images."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import nn

__all__ = ["HalfLife", "Profile", "ema_copy", "ema_decay", "ema_update"]

M = TypeVar("M", bound=nn.Module)


def ema_copy(module: M) -> M:
    """Frozen copy in evaluation mode, the start of an average."""
    out = copy.deepcopy(module).eval()
    out.requires_grad_(False)
    return out


def ema_decay(images: int, batch: int, half_life: float, ramp: float) -> float:
    """Weight of the old average after a step that brings the count to ``images``.

    The half-life is ``min(half_life, ramp * images)`` images, so that the first, bad weights are soon
    forgotten (arXiv 2206.00364, appendix F.2).

    >>> round(ema_decay(images=1000, batch=100, half_life=100, ramp=1.0), 6)
    0.5
    """
    effective = min(half_life, ramp * images)
    return float(0.5 ** (batch / max(effective, 1e-8)))


@torch.no_grad()
def ema_update(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move ``average`` towards ``module``; buffers are copied."""
    for mean, now in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(now.detach(), 1.0 - decay)
    for kept, buffer in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(buffer)


class Profile(Protocol):
    """How much an average keeps of itself at each step."""

    def decay(self, images: int, batch: int) -> float:
        """Weight of the old average in the step of ``batch`` images that brings the count to ``images``."""


@dataclass(frozen=True)
class HalfLife:
    """Exponential moving average of half-life ``min(half_life, ramp * images seen)`` images."""

    half_life: float
    ramp: float

    def decay(self, images: int, batch: int) -> float:
        """Weight of the old average."""
        return ema_decay(images, batch, self.half_life, self.ramp)
