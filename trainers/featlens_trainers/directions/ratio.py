"""The score-free direction: from the log density ratio that a time-conditioned classifier has learnt."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from featlens.denoiser import column
from featlens_trainers.directions.divergences import Divergence
from featlens_trainers.directions.protocol import Noised, denoising_loss
from featlens_trainers.engine import frozen
from featlens_trainers.weighting import WEIGHTINGS, Weighting

__all__ = ["RatioDirection", "ratio_loss"]


def ratio_loss(real_logit: Tensor, fake_logit: Tensor) -> Tensor:
    """Binary cross-entropy of the balanced real/fake classifier; at its optimum the logit is h.

    Both (B,); equals 2 ln 2 = 1.386 for a classifier that cannot tell.
    """
    return functional.softplus(-real_logit).mean() + functional.softplus(fake_logit).mean()


class RatioDirection:
    """Score-free direction: the gradient of ``phi(h)`` with h from a time-conditioned classifier.

    The ratio network's weights receive no gradient here: only the derivative in x is computed.

    Parameters
    ----------
    network
        ``network(x, sigma, labels)`` -> (B,) logits; with a method ``both`` that returns (denoised, logit) it
        is trained as a fake score as well (arXiv 2410.14919 shares the encoder alike).
    divergence, weighting
        What is minimised at each noise level, and how much the level counts.
    sigma_data
        Standard deviation of the data.
    denoising_weight
        Weight of the denoising loss, taken as a mean over pixels, beside the cross-entropy.
    """

    critic = "ratio"

    def __init__(
        self,
        network: nn.Module,
        divergence: Divergence,
        weighting: Weighting = WEIGHTINGS["sigma_squared"],
        sigma_data: float = 0.5,
        denoising_weight: float = 1.0,
    ) -> None:
        self.network = network
        self.divergence = divergence
        self.weighting = weighting
        self.sigma_data = sigma_data
        self.denoising_weight = denoising_weight

    def gradient(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised samples, (B,) sigma -> (B, C, H, W) d(divergence)/dx of each, not weighted."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad(), frozen(self.network):
            logit = self.network(leaf, sigma, labels).to(x.dtype)
            (out,) = torch.autograd.grad(self.divergence.surrogate(logit).sum(), leaf)
        return out

    def image_gradient(self, fake: Noised) -> Tensor:
        """``w(sigma) d phi(h) / dx`` (B, C, H, W)."""
        weight = self.weighting.image_weight(fake.sigma, self.sigma_data, None) * fake.sigma**2
        return column(weight, fake.x) * self.gradient(fake.x, fake.sigma, fake.labels)

    def critic_loss(self, real: Noised, fake: Noised) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Cross-entropy on both halves, with the denoising loss of a head on a fake score."""
        kind = fake.x.dtype
        if not hasattr(self.network, "both"):
            x, sigma = torch.cat([real.x, fake.x]), torch.cat([real.sigma, fake.sigma])
            labels = None
            if real.labels is not None and fake.labels is not None:
                labels = torch.cat([real.labels, fake.labels])
            return _classified(*self.network(x, sigma, labels).to(kind).chunk(2))
        # A fake score learns from generated images alone, so real ones need no decoder.
        real_logit = self.network(real.x, real.sigma, real.labels).to(kind)
        denoised, fake_logit = self.network.both(fake.x, fake.sigma, fake.labels)  # type: ignore[operator]
        loss, told = _classified(real_logit, fake_logit.to(kind))
        denoising = denoising_loss(denoised.to(kind), fake, self.sigma_data) / fake.clean[0].numel()
        return loss + self.denoising_weight * denoising, {**told, "fake_score_loss": denoising}


def _classified(real_logit: Tensor, fake_logit: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    loss = ratio_loss(real_logit, fake_logit)
    return loss, {"ratio_loss": loss, "h_real": real_logit.mean(), "h_fake": fake_logit.mean()}
