"""Settings of distillation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from featlens.errors import UsageError, choices_hint
from featlens_trainers.settings.checks import positive
from featlens_trainers.settings.noise import NoiseConfig
from featlens_trainers.settings.ratio import RatioConfig

__all__ = ["DIRECTIONS", "FAKE_LABELS", "SCORE_DIRECTIONS", "DistillConfig"]

SCORE_DIRECTIONS = ("diff_instruct", "sid", "dmd2")
"""Directions that need a teacher: its score and that of the student, learnt beside it."""
DIRECTIONS = ("ratio", *SCORE_DIRECTIONS)
FAKE_LABELS = ("partner", "balanced")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of a one-step student: updates of the critic and of the generator in turn.

    The critic is the ratio network, or the fake score of a score-based direction.

    Attributes
    ----------
    images, batch
        Images generated for the student's updates in all, and in each step.
    divergence
        What the direction ``"ratio"`` minimises: a name of :data:`featlens_trainers.DIVERGENCES`, or
        ``"python:module:function"`` for an f of one's own.
    sigma_init
        Noise level that the one-step generator is called at.
    lr, ratio_lr
        Learning rates of the generator and of the critic; both rise linearly over the first ``ramp_images``
        images of their network, 0 for no rise.
    beta1, beta2
        Of Adam, both networks.
    noise, critic_noise
        Noise levels of the generator's update, and of the critic's (default: the same distribution).
    ema_half_life, ema_ramp
        The main average's half-life is ``min(ema_half_life, ema_ramp * images seen)`` images.
    ema_half_lives, ema_powers
        More averages: half-lives in images, and relative widths of power-function profiles.
    direction
        ``"ratio"`` (score-free) or one of :data:`SCORE_DIRECTIONS`.
    weighting
        A name of :data:`featlens_trainers.weighting.WEIGHTINGS` or ``"python:module:function"``; None for the
        direction's own: ``"normalised"`` for sid and dmd2, ``"sigma_squared"`` for the others.
    clip
        Log ratios above it do not raise the weight r^2 f''(r) any more (forward_kl, jeffreys, hellinger and
        an f of one's own).
    alpha
        Of SiD's loss.
    critic_updates
        Updates of the critic, each on a batch of its own, for one of the generator.
    warmup
        Images during which only the critic learns; they count among ``images``.
    balanced
        Whether every batch holds all classes equally often.
    fake_labels
        Of a conditional student: ``"partner"`` (each generated image takes the label of its real partner) or
        ``"balanced"`` (drawn, each class equally often).
    denoising_weight
        Weight of the denoising loss (mean over pixels) beside the cross-entropy where the ratio network is
        the head of a fake score.
    ratio
        Size and kind of the ratio network.
    """

    images: int = 19_200
    batch: int = 64
    divergence: str = "reverse_kl"
    sigma_init: float = 2.5
    lr: float = 3e-4
    ratio_lr: float = 6e-4
    beta1: float = 0.0
    beta2: float = 0.99
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05
    direction: str = "ratio"
    weighting: str | None = None
    clip: float = 3.0
    alpha: float = 1.2
    critic_noise: NoiseConfig | None = None
    critic_updates: int = 1
    warmup: int = 0
    ramp_images: int = 0
    balanced: bool = False
    fake_labels: str = "partner"
    denoising_weight: float = 1.0
    ema_half_lives: tuple[int, ...] = ()
    ema_powers: tuple[float, ...] = ()
    ratio: RatioConfig = field(default_factory=RatioConfig)

    def __post_init__(self) -> None:
        from featlens_trainers.directions import DIVERGENCES
        from featlens_trainers.settings.teacher import require_tracks
        from featlens_trainers.weighting import WEIGHTINGS

        positive(self, "images", "batch", "lr", "ratio_lr", "sigma_init", "ema_half_life", "ema_ramp")
        positive(self, "critic_updates", "denoising_weight", "clip")
        _require_known("direction", self.direction, DIRECTIONS)
        if not self.divergence.startswith("python:"):
            _require_known("divergence", self.divergence, DIVERGENCES)
        if self.weighting is not None and not self.weighting.startswith("python:"):
            _require_known("weighting", self.weighting, WEIGHTINGS)
        _require_known("fake_labels", self.fake_labels, FAKE_LABELS)
        self._require_sensible_numbers()
        require_tracks(self.ema_half_lives, self.ema_powers)
        if self.weighting == "normalised" and self.direction == "ratio":
            raise UsageError(
                "configuration: the weighting 'normalised' divides by the distance to a teacher's estimate, "
                "and the direction 'ratio' has no teacher; choose another, such as 'sigma_squared'"
            )

    def _require_sensible_numbers(self) -> None:
        for name in ("warmup", "ramp_images"):
            if (value := getattr(self, name)) < 0:
                raise UsageError(f"configuration: {name} must be at least 0 images, got {value}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"configuration: {name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if self.warmup >= self.images:
            raise UsageError(
                f"configuration: warmup must be below images, or the student never moves; got {self.warmup} "
                f"and {self.images}"
            )
        if not math.isfinite(self.alpha):
            raise UsageError(f"configuration: alpha must be a finite number, got {self.alpha}")


def _require_known(what: str, value: str, known: Iterable[str]) -> None:
    if value not in (choices := list(known)):
        raise UsageError(f"unknown {what} {value!r}: {choices_hint(value, choices)}")
