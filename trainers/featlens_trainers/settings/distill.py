"""Settings of distillation."""

from __future__ import annotations

from dataclasses import dataclass, field

from featlens.errors import UsageError, choices_hint
from featlens_trainers.settings.checks import positive
from featlens_trainers.settings.noise import NoiseConfig

__all__ = ["DistillConfig"]


@dataclass(frozen=True)
class DistillConfig:
    """Score-free distillation: one update of the ratio network, one of the generator, in turn."""

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

    def __post_init__(self) -> None:
        from featlens_trainers.directions import DIVERGENCES

        positive(self, "images", "batch", "lr", "ratio_lr", "sigma_init", "ema_half_life", "ema_ramp")
        if self.divergence not in DIVERGENCES:
            raise UsageError(
                f"unknown divergence {self.divergence!r}: {choices_hint(self.divergence, DIVERGENCES)}"
            )
