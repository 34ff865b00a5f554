"""Train diffusion teachers and score-free one-step students, and study why the teacher's weights help.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featlens_trainers.directions import DIVERGENCES, Direction, Divergence, RatioDirection
    from featlens_trainers.distillation import distill, start_distillation
    from featlens_trainers.initialisation import build_denoiser, initialise_ratio, initialise_student
    from featlens_trainers.networks import RatioNetwork, UNet, UNetConfig
    from featlens_trainers.presets import resolve_study
    from featlens_trainers.quality import frechet_distance, kernel_distance
    from featlens_trainers.sampler import OneStepGenerator, heun_sample
    from featlens_trainers.settings import DistillConfig, InitSpec, StudyConfig, TeacherConfig
    from featlens_trainers.study import Study
    from featlens_trainers.teacher import edm_loss, start_teacher, train_teacher
    from featlens_trainers.training import Step, Training

_HOME = {
    "DIVERGENCES": "directions",
    "Direction": "directions",
    "DistillConfig": "settings",
    "Divergence": "directions",
    "InitSpec": "settings",
    "OneStepGenerator": "sampler",
    "RatioDirection": "directions",
    "RatioNetwork": "networks",
    "Step": "training",
    "Study": "study",
    "StudyConfig": "settings",
    "TeacherConfig": "settings",
    "Training": "training",
    "UNet": "networks",
    "UNetConfig": "networks",
    "build_denoiser": "initialisation",
    "distill": "distillation",
    "edm_loss": "teacher",
    "frechet_distance": "quality",
    "heun_sample": "sampler",
    "initialise_ratio": "initialisation",
    "initialise_student": "initialisation",
    "kernel_distance": "quality",
    "resolve_study": "presets",
    "start_distillation": "distillation",
    "start_teacher": "teacher",
    "train_teacher": "teacher",
}

__all__ = [
    "DIVERGENCES",
    "Direction",
    "DistillConfig",
    "Divergence",
    "InitSpec",
    "OneStepGenerator",
    "RatioDirection",
    "RatioNetwork",
    "Step",
    "Study",
    "StudyConfig",
    "TeacherConfig",
    "Training",
    "UNet",
    "UNetConfig",
    "build_denoiser",
    "distill",
    "edm_loss",
    "frechet_distance",
    "heun_sample",
    "initialise_ratio",
    "initialise_student",
    "kernel_distance",
    "resolve_study",
    "start_distillation",
    "start_teacher",
    "train_teacher",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"featlens_trainers.{_HOME[name]}"), name)
    raise AttributeError(f"module 'featlens_trainers' has no attribute {name!r}")
