"""Settings of a whole study."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from featlens.errors import UsageError, choices_hint
from featlens_trainers.networks.unet import UNetConfig
from featlens_trainers.settings.distill import DistillConfig
from featlens_trainers.settings.evaluation import ClassifierConfig, EvaluationConfig, FeatureConfig
from featlens_trainers.settings.initialisation import InitSpec
from featlens_trainers.settings.teacher import RegressionConfig, TeacherConfig

__all__ = ["StudyConfig"]


@dataclass(frozen=True)
class StudyConfig:
    """A whole study: every initialisation x ratio-network initialisation x divergence x seed."""

    preset: str = "digits"
    data: str = "digits"
    sigma_data: float = 0.75
    seed: int = 0
    seeds: tuple[int, ...] = (0,)
    inits: tuple[str, ...] = ("teacher", "features_only", "single_sigma", "prior_only", "random")
    ratio_inits: tuple[str, ...] = ("random",)
    divergences: tuple[str, ...] = ("reverse_kl",)
    network: UNetConfig = field(default_factory=UNetConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        if not (self.seeds and self.inits and self.ratio_inits and self.divergences):
            raise UsageError("study: seeds, inits, ratio_inits and divergences need at least one entry each")
        if self.data != "digits":
            raise UsageError(f"unknown data {self.data!r}: {choices_hint(self.data, ['digits'])}")
        size = (self.network.in_channels, self.network.out_channels, self.network.resolution)
        if size != (1, 1, 8):
            raise UsageError(
                f"study: digits have 1 channel and resolution 8, the network has in_channels {size[0]}, "
                f"out_channels {size[1]} and resolution {size[2]}; set them to 1, 1 and 8"
            )
        if self.network.labels or self.network.augment_labels:
            raise UsageError(
                "study: the students of a study are unconditional; set network.labels and "
                "network.augment_labels to 0"
            )
        for name in ("seeds", "inits", "ratio_inits", "divergences"):
            entries = getattr(self, name)
            if len(set(entries)) != len(entries):
                raise UsageError(f"study: {name} names an entry twice: {list(entries)}")
        for student in self.inits:
            for ratio in self.ratio_inits:
                InitSpec(student, ratio)
        for divergence in self.divergences:
            dataclasses.replace(self.distill, divergence=divergence)
        # The list decides; what a single run says follows it, so that the two cannot contradict each other.
        settings = dataclasses.replace(self.distill, divergence=self.divergences[0])
        object.__setattr__(self, "distill", settings)
