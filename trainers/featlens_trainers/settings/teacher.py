"""Settings of denoiser training and of the regression on a teacher's one-step map."""

from __future__ import annotations

from dataclasses import dataclass

from featlens_trainers.settings.checks import positive

__all__ = ["RegressionConfig", "TeacherConfig"]


@dataclass(frozen=True)
class TeacherConfig:
    """Training of a denoiser with EDM's loss (arXiv 2206.00364, table 1).

    ``sigma`` trains at one noise level only (the control ``single_sigma``); otherwise ln sigma is normal with
    mean ``p_mean`` and standard deviation ``p_std``. The learning rate rises linearly over ``ramp_images``
    and, if ``decay`` is set, falls to zero along a half cosine. The EMA's half-life is
    ``min(ema_half_life, ema_ramp * images seen)`` images.
    """

    images: int = 51_200
    batch: int = 64
    lr: float = 2e-3
    ramp_images: int = 6_400
    decay: bool = True
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma: float | None = None
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05

    def __post_init__(self) -> None:
        positive(self, "images", "batch", "lr", "p_std", "ema_half_life", "ema_ramp")
        if self.sigma is not None:
            positive(self, "sigma")


@dataclass(frozen=True)
class RegressionConfig:
    """Regression of a random network on the teacher's one-step map (the control ``map_regressed``)."""

    images: int = 51_200
    batch: int = 64
    lr: float = 2e-3
    ramp_images: int = 6_400
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05

    def __post_init__(self) -> None:
        positive(self, "images", "batch", "lr", "ema_half_life", "ema_ramp")
