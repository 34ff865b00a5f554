"""Train diffusion teachers and score-free one-step students, and study why the teacher's weights help.

Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featlens_trainers.body import start_body, train_body
    from featlens_trainers.data import ImageData, LazyData, TensorData, load_data, read_ahead
    from featlens_trainers.diagnostics import Diagnosis, diagnose
    from featlens_trainers.directions import (
        DIVERGENCES,
        DiffInstruct,
        Direction,
        Divergence,
        Noised,
        RatioDirection,
        SiD,
        make_direction,
    )
    from featlens_trainers.distillation import distill, start_distillation
    from featlens_trainers.engine import Engine, make_engine, memory_advice
    from featlens_trainers.initialisation import initialise_ratio, initialise_student
    from featlens_trainers.networks import (
        ADMConfig,
        DiTConfig,
        FakeScoreRatio,
        RatioConfig,
        RatioNetwork,
        UNet,
        UNetConfig,
        build_denoiser,
        build_network,
        build_ratio,
    )
    from featlens_trainers.posthoc import posthoc_denoiser, save_averages, write_posthoc
    from featlens_trainers.presets import resolve_study
    from featlens_trainers.quality import frechet_distance, kernel_distance
    from featlens_trainers.sampler import OneStepGenerator, heun_sample
    from featlens_trainers.settings import (
        BodyConfig,
        DistillConfig,
        InitSpec,
        NamedInit,
        NoiseConfig,
        RegressionConfig,
        StudyConfig,
        TeacherConfig,
        parse_init,
    )
    from featlens_trainers.settings.diagnostics import DiagnosticsConfig
    from featlens_trainers.study import Study
    from featlens_trainers.teacher import edm_loss, regress_map, start_teacher, train_teacher
    from featlens_trainers.training import Step, Training
    from featlens_trainers.weighting import WEIGHTINGS

_HOME = {
    "ADMConfig": "networks",
    "BodyConfig": "settings",
    "DIVERGENCES": "directions",
    "DiTConfig": "networks",
    "Diagnosis": "diagnostics",
    "DiagnosticsConfig": "settings.diagnostics",
    "DiffInstruct": "directions",
    "Direction": "directions",
    "DistillConfig": "settings",
    "Divergence": "directions",
    "Engine": "engine",
    "FakeScoreRatio": "networks",
    "ImageData": "data",
    "InitSpec": "settings",
    "LazyData": "data",
    "NamedInit": "settings",
    "NoiseConfig": "settings",
    "Noised": "directions",
    "OneStepGenerator": "sampler",
    "RatioConfig": "networks",
    "RatioDirection": "directions",
    "RatioNetwork": "networks",
    "RegressionConfig": "settings",
    "SiD": "directions",
    "Step": "training",
    "Study": "study",
    "StudyConfig": "settings",
    "TeacherConfig": "settings",
    "TensorData": "data",
    "Training": "training",
    "UNet": "networks",
    "UNetConfig": "networks",
    "WEIGHTINGS": "weighting",
    "build_denoiser": "networks",
    "build_network": "networks",
    "build_ratio": "networks",
    "diagnose": "diagnostics",
    "distill": "distillation",
    "edm_loss": "teacher",
    "frechet_distance": "quality",
    "heun_sample": "sampler",
    "initialise_ratio": "initialisation",
    "initialise_student": "initialisation",
    "kernel_distance": "quality",
    "load_data": "data",
    "make_direction": "directions",
    "make_engine": "engine",
    "memory_advice": "engine",
    "parse_init": "settings",
    "posthoc_denoiser": "posthoc",
    "read_ahead": "data",
    "regress_map": "teacher",
    "resolve_study": "presets",
    "save_averages": "posthoc",
    "start_body": "body",
    "start_distillation": "distillation",
    "start_teacher": "teacher",
    "train_body": "body",
    "train_teacher": "teacher",
    "write_posthoc": "posthoc",
}

__all__ = [
    "ADMConfig",
    "BodyConfig",
    "DIVERGENCES",
    "DiTConfig",
    "Diagnosis",
    "DiagnosticsConfig",
    "DiffInstruct",
    "Direction",
    "DistillConfig",
    "Divergence",
    "Engine",
    "FakeScoreRatio",
    "ImageData",
    "InitSpec",
    "LazyData",
    "NamedInit",
    "NoiseConfig",
    "Noised",
    "OneStepGenerator",
    "RatioConfig",
    "RatioDirection",
    "RatioNetwork",
    "RegressionConfig",
    "SiD",
    "Step",
    "Study",
    "StudyConfig",
    "TeacherConfig",
    "TensorData",
    "Training",
    "UNet",
    "UNetConfig",
    "WEIGHTINGS",
    "build_denoiser",
    "build_network",
    "build_ratio",
    "diagnose",
    "distill",
    "edm_loss",
    "frechet_distance",
    "heun_sample",
    "initialise_ratio",
    "initialise_student",
    "kernel_distance",
    "load_data",
    "make_direction",
    "make_engine",
    "memory_advice",
    "parse_init",
    "posthoc_denoiser",
    "read_ahead",
    "regress_map",
    "resolve_study",
    "save_averages",
    "start_body",
    "start_distillation",
    "start_teacher",
    "train_body",
    "train_teacher",
    "write_posthoc",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"featlens_trainers.{_HOME[name]}"), name)
    raise AttributeError(f"module 'featlens_trainers' has no attribute {name!r}")
