"""Settings of the checks that accompany a distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint

__all__ = ["ALARMS", "DiagnosticsConfig"]

ALARMS = ("stop", "warn", "off")


@dataclass(frozen=True)
class DiagnosticsConfig:
    """What is looked at whenever a student is evaluated; none of it changes the training.

    Attributes
    ----------
    sigmas
        Noise levels.
    images
        Real and as many generated images at each of them; 0 leaves the checks out.
    bank
        Generated images from which the ideal denoiser of the student's distribution is made, where a teacher
        is there to compare with; 0 leaves that comparison out.
    alarms
        ``"stop"`` ends a run that collapses or saturates, with advice; ``"warn"`` says it and goes on.
    """

    sigmas: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0, 2.5, 10.0)
    images: int = 256
    bank: int = 1024
    alarms: str = "stop"

    def __post_init__(self) -> None:
        if self.alarms not in ALARMS:
            raise UsageError(
                f"unknown setting of alarms {self.alarms!r}: {choices_hint(self.alarms, ALARMS)}"
            )
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise UsageError(f"diagnostics: sigmas must be numbers above 0, got {list(self.sigmas)}")
        for name, least in (("images", 2), ("bank", 16)):
            value = getattr(self, name)
            if value and value < least:
                raise UsageError(f"diagnostics: {name} must be 0 or at least {least}, got {value}")
