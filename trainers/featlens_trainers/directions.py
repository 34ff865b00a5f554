"""Directions: what turns a noised student sample into a gradient in image space.

Let ``h(x, sigma) = log p_sigma(x) - log q_sigma(x)`` be the log density ratio of data p to student q, both
convolved with N(0, sigma^2). For ``D_f(p || q) = E_q f(p / q)`` the gradient of the divergence through a
student sample is that of a per-sample surrogate ``phi(h)`` with h frozen, ``-r^2 f''(r) grad h`` with
``r = e^h`` (arXiv 2502.08005; the algebra is checked on Gaussians in tests/test_directions.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DIVERGENCES", "Direction", "Divergence", "RatioDirection", "ratio_loss"]


@dataclass(frozen=True)
class Divergence:
    """One member of the family: the surrogate the generator minimises, as a function of the log ratio h."""

    name: str
    formula: str
    surrogate: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor]
    """``r^2 f''(r)``: the surrogate's slope is minus this."""


DIVERGENCES: dict[str, Divergence] = {
    "reverse_kl": Divergence("reverse_kl", "KL(q || p)", lambda h: -h, torch.ones_like),
    "js": Divergence(
        "js", "KL(p || m) + KL(q || m), m = (p + q) / 2", lambda h: -functional.softplus(h), torch.sigmoid
    ),
}


class Direction(Protocol):
    """Gradient of a divergence in image space, given a noised student sample."""

    def gradient(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised student samples, (B,) sigma -> (B, C, H, W) d(divergence)/dx of each sample."""


def ratio_loss(real_logit: Tensor, fake_logit: Tensor) -> Tensor:
    """Binary cross-entropy of the balanced real/fake classifier; at its optimum the logit is h.

    Both (B,); equals 2 ln 2 = 1.386 for a classifier that cannot tell.
    """
    return functional.softplus(-real_logit).mean() + functional.softplus(fake_logit).mean()


class RatioDirection:
    """Score-free direction: the gradient of ``phi(h)`` with h from a time-conditioned classifier.

    The ratio network's weights receive no gradient here: only the derivative in x is computed.
    """

    def __init__(self, network: nn.Module, divergence: Divergence) -> None:
        self.network = network
        self.divergence = divergence

    def gradient(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W), (B,) -> (B, C, H, W)."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            value = self.divergence.surrogate(self.network(leaf, sigma, labels)).sum()
            (out,) = torch.autograd.grad(value, leaf)
        return out
