"""Score-based directions: a teacher's denoiser beside one that learns the student's samples (the fake score).

Notation: x0 = G(z) a generated image, x = x0 + sigma eps; D_T = D_teacher(x, sigma), D_F = D_fake(x, sigma).
For exact denoisers ``D_T - D_F = sigma^2 grad_x h``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from featlens.denoiser import Denoiser, column
from featlens_trainers.directions.protocol import Noised, denoising_loss
from featlens_trainers.engine import frozen
from featlens_trainers.training import seeded
from featlens_trainers.weighting import WEIGHTINGS, Weighting, image_distance

__all__ = ["DiffInstruct", "ScoreDirection", "SiD", "denoiser_gap"]


class ScoreDirection:
    """What the score-based directions share: a frozen teacher and a fake score trained by denoising.

    Parameters
    ----------
    teacher, fake_score
        Denoisers ``denoiser(x, sigma, labels)`` with ``sigma_data``.
    weighting
        How much each noise level counts.
    dropout
        Whether both denoisers are compared as they train, with the same dropout masks; otherwise without.
    """

    critic = "fake_score"

    def __init__(
        self,
        teacher: Denoiser,
        fake_score: Denoiser,
        weighting: Weighting = WEIGHTINGS["sigma_squared"],
        dropout: bool = False,
    ) -> None:
        self.teacher, self.fake_score = teacher, fake_score
        self.weighting = weighting
        self.dropout = dropout

    def critic_loss(self, real: Noised, fake: Noised) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Denoising loss on generated images; the real ones are not looked at."""
        estimate = self.fake_score(fake.x, fake.sigma, fake.labels).to(fake.x.dtype)
        loss = denoising_loss(estimate, fake, self.fake_score.sigma_data)
        return loss, {"fake_score_loss": loss}

    def estimates(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """D_T and D_F of noised images (B, C, H, W), of one and the same dropout mask, or of none."""
        # One draw, so that masks differ from step to step; the loop has seeded the generator it comes from.
        mask = int(torch.randint(2**62, ())) if self.dropout else 0
        out = []
        for denoiser in (self.teacher, self.fake_score):
            with _mode(denoiser, self.dropout), seeded(mask, "masks"):
                out.append(denoiser(x, sigma, labels).to(x.dtype))
        return out[0], out[1]

    def image_weight(self, fake: Noised, teacher_estimate: Tensor) -> Tensor:
        """(B, 1, 1, 1) weight in image space, w / sigma^2."""
        distance = image_distance(fake.clean, teacher_estimate)
        weight = self.weighting.image_weight(fake.sigma, self.teacher.sigma_data, distance)
        return column(weight, fake.x)


class DiffInstruct(ScoreDirection):
    """``(D_F - D_T) w / sigma^2``: the reverse KL's gradient (Diff-Instruct, VSD; arXiv 2305.18455).

    DMD2's, without its GAN, is the same with the weighting ``normalised`` and several updates of the fake
    score for one of the generator (arXiv 2405.14867).
    """

    @torch.no_grad()
    def image_gradient(self, fake: Noised) -> Tensor:
        """(B, C, H, W)."""
        teacher, student = self.estimates(fake.x, fake.sigma, fake.labels)
        return self.image_weight(fake, teacher) * (student - teacher)


class SiD(ScoreDirection):
    """Score identity distillation (arXiv 2404.04057): the Fisher divergence, with a correction for D_F.

    The loss of a sample is ``(D_T - D_F) . [(D_T - x0) - alpha (D_T - D_F)] w / sigma^2``. Its gradient runs
    through x0 and, by way of the noised image, through both denoisers, whose weights are frozen; the weight
    is a constant.
    """

    def __init__(
        self,
        teacher: Denoiser,
        fake_score: Denoiser,
        weighting: Weighting = WEIGHTINGS["normalised"],
        alpha: float = 1.2,
        dropout: bool = False,
    ) -> None:
        super().__init__(teacher, fake_score, weighting, dropout)
        self.alpha = alpha

    def image_gradient(self, fake: Noised) -> Tensor:
        """(B, C, H, W)."""
        noise = fake.x - fake.clean
        with torch.enable_grad(), frozen(_module(self.teacher), _module(self.fake_score)):
            x0 = fake.clean.detach().requires_grad_(True)
            teacher, student = self.estimates(x0 + noise, fake.sigma, fake.labels)
            weight = self.image_weight(fake, teacher.detach())
            gap = teacher - student
            loss = (weight * gap * ((teacher - x0) - self.alpha * gap)).sum()
            (out,) = torch.autograd.grad(loss, x0)
        return out


@torch.no_grad()
def denoiser_gap(teacher: Denoiser, fake_score: Denoiser, sample: Noised) -> Tensor:
    """``D_T - D_F`` (B, C, H, W): sigma^2 grad h as two denoisers know it."""
    gap: Tensor = teacher(sample.x, sample.sigma, sample.labels) - fake_score(
        sample.x, sample.sigma, sample.labels
    )
    return gap


def _module(denoiser: Denoiser) -> nn.Module:
    return denoiser if isinstance(denoiser, nn.Module) else denoiser.network


class _mode:
    """Context in which a denoiser is in training mode or not; afterwards every part is as before."""

    def __init__(self, denoiser: Denoiser, training: bool) -> None:
        self.module, self.training = _module(denoiser), training

    def __enter__(self) -> None:
        self.before = [(module, module.training) for module in self.module.modules()]
        self.module.train(self.training)

    def __exit__(self, *error: object) -> None:
        for module, training in self.before:
            module.training = training
