"""Settings of denoiser training and of the regression on a teacher's map."""

from __future__ import annotations

from dataclasses import dataclass

from featlens.errors import UsageError
from featlens_trainers.settings.checks import positive
from featlens_trainers.settings.noise import NoiseConfig

__all__ = ["RegressionConfig", "TeacherConfig"]


@dataclass(frozen=True)
class TeacherConfig:
    """Training of a denoiser with EDM's loss (arXiv 2206.00364, table 1).

    Attributes
    ----------
    images, batch
        Images seen in all, and in each step.
    lr, ramp_images, decay
        The learning rate rises linearly over ``ramp_images`` and, if ``decay`` is set, falls to zero along a
        half cosine.
    p_mean, p_std
        Mean and standard deviation of ln sigma.
    sigma
        Trains at this one noise level (the control ``single_sigma``).
    sigma_low, sigma_high
        Cuts the distribution of sigma to this band (the control ``band_sigma``); one of them may be absent.
    augment
        Probability of each transformation of :func:`featlens_trainers.augment.augment`, 0 for none (EDM:
        0.12). The network needs ``augment_labels = 9``.
    augment_flip
        Probability that the mirror image left to right takes part, where it differs from ``augment``; 1 shows
        half of all images mirrored.
    ema_half_life, ema_ramp
        The main average's half-life is ``min(ema_half_life, ema_ramp * images seen)`` images.
    ema_half_lives, ema_powers
        More averages: half-lives in images, and relative widths of power-function profiles such as 0.05 and
        0.1 (arXiv 2312.02696).
    snapshot_images
        Snapshots of all averages each time so many images were seen; 0 for the end alone.
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
    sigma_low: float | None = None
    sigma_high: float | None = None
    augment: float = 0.0
    augment_flip: float | None = None
    ema_half_lives: tuple[int, ...] = ()
    ema_powers: tuple[float, ...] = ()
    snapshot_images: int = 0

    def __post_init__(self) -> None:
        positive(self, "images", "batch", "lr", "p_std", "ema_half_life", "ema_ramp")
        for name in ("sigma", "sigma_low", "sigma_high"):
            if getattr(self, name) is not None:
                positive(self, name)
        if self.sigma is not None and (self.sigma_low is not None or self.sigma_high is not None):
            raise UsageError(
                "configuration: sigma trains at one noise level, sigma_low and sigma_high at a band; "
                "give one or the other"
            )
        low, high = self.sigma_low, self.sigma_high
        if low is not None and high is not None and low >= high:
            raise UsageError(f"configuration: sigma_low must be below sigma_high, got {low} and {high}")
        for name in ("augment", "augment_flip"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"configuration: {name} is a probability from 0 to 1, got {value}")
        if self.augment_flip is not None and not self.augment:
            raise UsageError("configuration: augment_flip needs augment above 0, got augment 0")
        if self.snapshot_images < 0:
            raise UsageError(
                f"configuration: snapshot_images must be at least 0, got {self.snapshot_images}; "
                "0 keeps the end alone"
            )
        require_tracks(self.ema_half_lives, self.ema_powers)

    @property
    def noise(self) -> NoiseConfig:
        """Distribution of the noise levels."""
        if self.sigma is not None:
            return NoiseConfig(kind="fixed", sigma=self.sigma)
        return NoiseConfig("lognormal", self.p_mean, self.p_std, self.sigma_low, self.sigma_high)


def require_tracks(half_lives: tuple[int, ...], powers: tuple[float, ...]) -> None:
    """Refuse additional averages that do not exist or are named twice."""
    from featlens_trainers.ema import exponent_of

    for half_life in half_lives:
        if half_life <= 0:
            raise UsageError(f"configuration: ema_half_lives are images above 0, got {half_life}")
    for std in powers:
        exponent_of(std)
    for name, values in (("ema_half_lives", half_lives), ("ema_powers", powers)):
        if len(set(values)) != len(values):
            raise UsageError(f"configuration: {name} names a value twice: {list(values)}")


@dataclass(frozen=True)
class RegressionConfig:
    """Regression of a random network on the teacher's map (the control ``map_regressed``).

    Attributes
    ----------
    images, batch, lr, ramp_images, ema_half_life, ema_ramp
        As in :class:`TeacherConfig`.
    bank, heun_steps
        For the target ``"ode"``: how many latents have their endpoint computed beforehand, and the steps of
        Heun's method.
    """

    images: int = 51_200
    batch: int = 64
    lr: float = 2e-3
    ramp_images: int = 6_400
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05
    bank: int = 16_384
    heun_steps: int = 18

    def __post_init__(self) -> None:
        positive(self, "images", "batch", "lr", "ema_half_life", "ema_ramp", "bank", "heun_steps")
