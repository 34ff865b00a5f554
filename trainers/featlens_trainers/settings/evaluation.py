"""Settings of the study's classifier, of evaluation, and of the analysis of features."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featlens.errors import UsageError
from featlens.reduce import resolve as resolve_reduction
from featlens_trainers.settings.checks import positive

__all__ = ["ClassifierConfig", "EvaluationConfig", "FeatureConfig"]


@dataclass(frozen=True)
class ClassifierConfig:
    """The study's own small classifier, whose penultimate features measure image quality."""

    images: int = 60_000
    batch: int = 128
    lr: float = 3e-3
    features: int = 32

    def __post_init__(self) -> None:
        positive(self, "images", "batch", "lr", "features")


@dataclass(frozen=True)
class EvaluationConfig:
    """Frechet distance and KID to the held-out images: how many generated images, how often."""

    images: int = 1_000
    times: int = 6
    heun_steps: int = 18
    grid: int = 8

    def __post_init__(self) -> None:
        positive(self, "times", "heun_steps", "grid")
        if self.images < 2:
            raise UsageError(f"configuration: evaluation.images must be at least 2, got {self.images}")


@dataclass(frozen=True)
class FeatureConfig:
    """Capture, comparison and probing of teacher and students on the held-out images."""

    sigmas: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0, 2.5)
    sites: tuple[str, ...] = ("enc.*", "dec.*block*", "dec.*in*", "dec.*up")
    reduce: str = "gap"
    permutations: int = 100
    probe_splits: int = 5

    def __post_init__(self) -> None:
        positive(self, "permutations", "probe_splits")
        resolve_reduction(self.reduce)
        if not self.sites:
            raise UsageError("configuration: sites must be one or more patterns, got none")
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise UsageError(
                f"configuration: sigmas must be one or more numbers above 0, got {list(self.sigmas)}"
            )
        if len(set(self.sigmas)) != len(self.sigmas):
            raise UsageError(f"configuration: sigmas name a noise level twice: {list(self.sigmas)}")
