"""Settings of the study's classifier, of evaluation, and of the analysis of features."""

from __future__ import annotations

import math
from dataclasses import dataclass

from featlens.errors import UsageError
from featlens.reduce import resolve as resolve_reduction
from featlens_trainers.settings.checks import positive

__all__ = ["BestOfConfig", "ClassifierConfig", "EvaluationConfig", "FeatureConfig", "MetricConfig"]


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
    """Frechet distance and KID to the held-out images: how many generated images, how often.

    Of the held-out images no more than ``reference`` are used, the first ones. Features are those of
    ``extractor`` (as ``featlens evaluate`` takes it), or of the study's own classifier if it is None; without
    labels and without an extractor quality is not measured.
    """

    images: int = 1_000
    times: int = 6
    heun_steps: int = 18
    grid: int = 8
    reference: int = 10_000
    extractor: str | None = None

    def __post_init__(self) -> None:
        positive(self, "times", "heun_steps", "grid")
        for name in ("images", "reference"):
            if getattr(self, name) < 2:
                raise UsageError(
                    f"configuration: evaluation.{name} must be at least 2, got {getattr(self, name)}"
                )


@dataclass(frozen=True)
class MetricConfig:
    """How ``featlens evaluate`` measures.

    Attributes
    ----------
    k_precision, k_coverage
        Neighbour that a ball reaches: of precision and recall, and of density and coverage.
    kid_block
        Images a block of the block-averaged KID; a tenth of the smaller set, 1,000 at most, if None.
    resamples
        Draws from which the errors come; 0 for none.
    extrapolate
        Whether the Frechet distance for endless images is estimated too.
    seed
        Seed of the draws and blocks.
    """

    k_precision: int = 3
    k_coverage: int = 5
    kid_block: int | None = None
    resamples: int = 100
    extrapolate: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, "k_precision", "k_coverage")
        if self.kid_block is not None and self.kid_block < 2:
            raise UsageError(f"configuration: kid_block must be at least 2, got {self.kid_block}")
        if self.resamples < 0 or self.resamples == 1:
            raise UsageError(
                f"configuration: resamples must be 0 (no errors) or at least 2, got {self.resamples}"
            )


@dataclass(frozen=True)
class BestOfConfig:
    """How a ratio network chooses among candidates: by its mean logit at these noise levels."""

    sigmas: tuple[float, ...] = (0.2,)

    def __post_init__(self) -> None:
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise UsageError(
                f"configuration: best-of sigmas must be one or more numbers above 0, got {list(self.sigmas)}"
            )


@dataclass(frozen=True)
class FeatureConfig:
    """Capture, comparison and probing of teacher and students on the held-out images.

    ``images`` of them, drawn by the study's seed; all if None.
    """

    sigmas: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0, 2.5)
    sites: tuple[str, ...] = ("enc.*", "dec.*block*", "dec.*in*", "dec.*up")
    reduce: str = "gap"
    permutations: int = 100
    probe_splits: int = 5
    images: int | None = None

    def __post_init__(self) -> None:
        positive(self, "permutations", "probe_splits")
        if self.images is not None and self.images < 2:
            raise UsageError(f"configuration: features.images must be at least 2, got {self.images}")
        resolve_reduction(self.reduce)
        if not self.sites:
            raise UsageError("configuration: sites must be one or more patterns, got none")
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise UsageError(
                f"configuration: sigmas must be one or more numbers above 0, got {list(self.sigmas)}"
            )
        if len(set(self.sigmas)) != len(self.sigmas):
            raise UsageError(f"configuration: sigmas name a noise level twice: {list(self.sigmas)}")
