"""Settings of a whole study."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from featlens.errors import UsageError
from featlens_trainers.settings.diagnostics import DiagnosticsConfig
from featlens_trainers.settings.distill import SCORE_DIRECTIONS, DistillConfig
from featlens_trainers.settings.evaluation import ClassifierConfig, EvaluationConfig, FeatureConfig
from featlens_trainers.settings.initialisation import BodyConfig, InitSpec, NamedInit, parse_init
from featlens_trainers.settings.network import NetworkConfig, UNetConfig
from featlens_trainers.settings.teacher import RegressionConfig, TeacherConfig

__all__ = ["StudyConfig"]

KNOWN_DATA = {"digits": (1, 8), "shapes16": (3, 16), "shapes32": (3, 32), "shapes64": (3, 64)}
"""Channels and resolution of data that needs no file."""


@dataclass(frozen=True)
class StudyConfig:
    """A whole study: every initialisation x ratio-network initialisation x divergence x seed.

    Attributes
    ----------
    preset
        Name of the preset that the settings began with.
    data, values, holdout, train_images
        Where the images are, as :meth:`featlens.SampleSet.load` takes it; what numbers they hold; how many
        are held out where the source has no split of its own; how many to train on (all if left out).
    pretrained
        Run or snapshot that is the teacher, instead of one that is trained (``featlens convert`` makes such a
        run of a published teacher).
    sigma_data
        Standard deviation of the pixels in [-1, 1] (``featlens inspect DATA`` suggests one).
    seed
        Of teacher, controls, classifier and evaluation; ``seeds`` are those of the students.
    inits, ratio_inits, custom
        Initialisations of the student and of the ratio network by name, and rules for names of one's own.
    divergences
        What the students minimise: divergences of the ratio network (``"reverse_kl"``), or the directions of
        the score-based rivals (``"diff_instruct"``, ``"sid"``, ``"dmd2"``).
    band
        Lowest and highest noise level of the control ``band_sigma``.
    """

    preset: str = "digits"
    data: str = "digits"
    values: str | None = None
    holdout: int | None = None
    train_images: int | None = None
    pretrained: str | None = None
    sigma_data: float = 0.75
    seed: int = 0
    seeds: tuple[int, ...] = (0,)
    inits: tuple[str, ...] = ("teacher", "features_only", "single_sigma", "prior_only", "random")
    ratio_inits: tuple[str, ...] = ("random",)
    divergences: tuple[str, ...] = ("reverse_kl",)
    band: tuple[float, ...] = (0.5, 5.0)
    custom: tuple[NamedInit, ...] = ()
    network: NetworkConfig = field(default_factory=UNetConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    body: BodyConfig = field(default_factory=BodyConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)

    def __post_init__(self) -> None:
        if not (self.seeds and self.inits and self.ratio_inits and self.divergences):
            raise UsageError("study: seeds, inits, ratio_inits and divergences need at least one entry each")
        self._require_fitting_network()
        if len(self.band) != 2 or not 0 < self.band[0] < self.band[1]:
            raise UsageError(f"study: band must be two noise levels, low and high, got {list(self.band)}")
        for name in ("seeds", "inits", "ratio_inits", "divergences"):
            entries = getattr(self, name)
            if len(set(entries)) != len(entries):
                raise UsageError(f"study: {name} names an entry twice: {list(entries)}")
        for student in self.inits:
            for ratio in self.ratio_inits:
                self.initialisation(student, ratio)
        # The list decides; what a single run says follows it, so that the two cannot contradict each other.
        settings = next(iter([self.loss(name) for name in self.divergences]))
        object.__setattr__(self, "distill", settings)

    def _require_fitting_network(self) -> None:
        network = self.network
        if self.data in KNOWN_DATA:
            channels, resolution = KNOWN_DATA[self.data]
            size = (network.in_channels, network.out_channels, network.resolution)
            if size != (channels, channels, resolution):
                raise UsageError(
                    f"study: {self.data} have {channels} channel{'s' * (channels > 1)} and resolution "
                    f"{resolution}, the network has in_channels {size[0]}, out_channels {size[1]} and "
                    f"resolution {size[2]}; set them to {channels}, {channels} and {resolution}"
                )
        if self.teacher.augment and network.augment_labels != 9:
            raise UsageError(
                f"study: teacher.augment needs network.augment_labels = 9, got {network.augment_labels}; "
                "set it, or set teacher.augment to 0"
            )

    def loss(self, name: str) -> DistillConfig:
        """Settings of a student that minimises ``name``, a divergence or a score-based direction."""
        if name in SCORE_DIRECTIONS:
            return dataclasses.replace(self.distill, direction=name)
        return dataclasses.replace(self.distill, direction="ratio", divergence=name)

    def initialisation(self, student: str, ratio: str) -> InitSpec:
        """The initialisation of that name, of ``custom`` or built in, and the ratio network's."""
        return parse_init(student, self.custom, ratio)
