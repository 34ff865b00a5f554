"""Settings as frozen dataclasses, one module a subject; everything is counted in images, not in steps."""

from featlens_trainers.settings.distill import DistillConfig
from featlens_trainers.settings.evaluation import (
    BestOfConfig,
    ClassifierConfig,
    EvaluationConfig,
    FeatureConfig,
    MetricConfig,
)
from featlens_trainers.settings.initialisation import (
    INITIALISATIONS,
    RATIO_INITIALISATIONS,
    STUDY_INITIALISATIONS,
    BodyConfig,
    InitSpec,
    NamedInit,
    parse_init,
)
from featlens_trainers.settings.network import ADMConfig, DiTConfig, NetworkConfig, UNetConfig
from featlens_trainers.settings.noise import NOISE_KINDS, NoiseConfig
from featlens_trainers.settings.ratio import RATIO_KINDS, RatioConfig
from featlens_trainers.settings.study import StudyConfig
from featlens_trainers.settings.teacher import RegressionConfig, TeacherConfig

__all__ = [
    "ADMConfig",
    "BestOfConfig",
    "BodyConfig",
    "ClassifierConfig",
    "DistillConfig",
    "DiTConfig",
    "EvaluationConfig",
    "FeatureConfig",
    "INITIALISATIONS",
    "InitSpec",
    "MetricConfig",
    "NamedInit",
    "NetworkConfig",
    "NOISE_KINDS",
    "NoiseConfig",
    "parse_init",
    "RATIO_INITIALISATIONS",
    "RATIO_KINDS",
    "RatioConfig",
    "RegressionConfig",
    "STUDY_INITIALISATIONS",
    "StudyConfig",
    "TeacherConfig",
    "UNetConfig",
]
