"""Where a student's tensors come from."""

from __future__ import annotations

from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint

__all__ = ["INITIALISATIONS", "RATIO_INITIALISATIONS", "InitSpec"]

INITIALISATIONS = ("teacher", "features_only", "single_sigma", "map_regressed", "prior_only", "random")
RATIO_INITIALISATIONS = ("teacher", "random")


@dataclass(frozen=True)
class InitSpec:
    """Where a student's tensors and its ratio network's tensors come from before distillation.

    Attributes
    ----------
    student
        One of :data:`INITIALISATIONS`.
    ratio
        ``"teacher"`` (the teacher's encoder and noise embedding) or ``"random"``.
    """

    student: str = "teacher"
    ratio: str = "random"

    def __post_init__(self) -> None:
        for what, value, known in (
            ("initialisation", self.student, INITIALISATIONS),
            ("ratio-network initialisation", self.ratio, RATIO_INITIALISATIONS),
        ):
            if value not in known:
                raise UsageError(f"unknown {what} {value!r}: {choices_hint(value, known)}")
