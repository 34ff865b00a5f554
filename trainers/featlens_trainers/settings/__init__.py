"""Settings as frozen dataclasses, one module a subject; everything is counted in images, not in steps."""

from featlens_trainers.settings.distill import DistillConfig
from featlens_trainers.settings.evaluation import ClassifierConfig, EvaluationConfig, FeatureConfig
from featlens_trainers.settings.initialisation import INITIALISATIONS, RATIO_INITIALISATIONS, InitSpec
from featlens_trainers.settings.noise import NOISE_KINDS, NoiseConfig
from featlens_trainers.settings.study import StudyConfig
from featlens_trainers.settings.teacher import RegressionConfig, TeacherConfig

__all__ = [
    "ClassifierConfig",
    "DistillConfig",
    "EvaluationConfig",
    "FeatureConfig",
    "INITIALISATIONS",
    "InitSpec",
    "NOISE_KINDS",
    "NoiseConfig",
    "RATIO_INITIALISATIONS",
    "RegressionConfig",
    "StudyConfig",
    "TeacherConfig",
]
