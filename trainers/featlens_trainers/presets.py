"""Settings of teacher, students and study, and the presets as one table.

The defaults were chosen on teacher quality and on stability of training alone; no initialisation was looked
at (docs/results/digits.md tells how). Everything is counted in images, not in steps.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featlens.errors import UsageError, choices_hint
from featlens.files import explain_os_error
from featlens.reduce import resolve as resolve_reduction
from featlens_trainers.config import from_mapping
from featlens_trainers.networks.unet import UNetConfig

__all__ = [
    "INITIALISATIONS",
    "PRESETS",
    "RATIO_INITIALISATIONS",
    "ClassifierConfig",
    "DistillConfig",
    "EvaluationConfig",
    "FeatureConfig",
    "InitSpec",
    "RegressionConfig",
    "StudyConfig",
    "TeacherConfig",
    "read_toml",
    "resolve_study",
]

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


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise UsageError(f"configuration: {name} must be above 0, got {getattr(config, name)}")


@dataclass(frozen=True)
class TeacherConfig:
    """Training of a denoiser with EDM's loss (arXiv 2206.00364, table 1).

    ``sigma`` trains at one noise level only (the control ``single_sigma``); otherwise ln sigma is normal with
    mean ``p_mean`` and standard deviation ``p_std``. The learning rate rises linearly over ``ramp_images``
    and, if ``decay`` is set, falls to zero along a half cosine. The EMA's half-life is
    ``min(ema_half_life, ema_ramp * images seen)`` images.
    """

    images: int = 51_200
    batch: int = 64
    lr: float = 2e-3
    ramp_images: int = 6_400
    decay: bool = True
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma: float | None = None
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05

    def __post_init__(self) -> None:
        _positive(self, "images", "batch", "lr", "p_std", "ema_half_life", "ema_ramp")
        if self.sigma is not None:
            _positive(self, "sigma")


@dataclass(frozen=True)
class RegressionConfig:
    """Regression of a random network on the teacher's one-step map (the control ``map_regressed``)."""

    images: int = 51_200
    batch: int = 64
    lr: float = 2e-3
    ramp_images: int = 6_400
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05

    def __post_init__(self) -> None:
        _positive(self, "images", "batch", "lr", "ema_half_life", "ema_ramp")


@dataclass(frozen=True)
class DistillConfig:
    """Score-free distillation: one update of the ratio network, one of the generator, in turn."""

    images: int = 19_200
    batch: int = 64
    divergence: str = "reverse_kl"
    sigma_init: float = 2.5
    lr: float = 3e-4
    ratio_lr: float = 6e-4
    beta1: float = 0.0
    beta2: float = 0.99
    p_mean: float = -1.2
    p_std: float = 1.2
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05

    def __post_init__(self) -> None:
        from featlens_trainers.directions import DIVERGENCES

        _positive(
            self, "images", "batch", "lr", "ratio_lr", "sigma_init", "p_std", "ema_half_life", "ema_ramp"
        )
        if self.divergence not in DIVERGENCES:
            raise UsageError(
                f"unknown divergence {self.divergence!r}: {choices_hint(self.divergence, DIVERGENCES)}"
            )


@dataclass(frozen=True)
class ClassifierConfig:
    """The study's own small classifier, whose penultimate features measure image quality."""

    images: int = 60_000
    batch: int = 128
    lr: float = 3e-3
    features: int = 32

    def __post_init__(self) -> None:
        _positive(self, "images", "batch", "lr", "features")


@dataclass(frozen=True)
class EvaluationConfig:
    """Frechet distance and KID to the held-out images: how many generated images, how often."""

    images: int = 1_000
    times: int = 6
    heun_steps: int = 18
    grid: int = 8

    def __post_init__(self) -> None:
        _positive(self, "times", "heun_steps", "grid")
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
        _positive(self, "permutations", "probe_splits")
        resolve_reduction(self.reduce)
        if not self.sites:
            raise UsageError("configuration: sites must be one or more patterns, got none")
        if not self.sigmas or not all(0 < sigma < math.inf for sigma in self.sigmas):
            raise UsageError(
                f"configuration: sigmas must be one or more numbers above 0, got {list(self.sigmas)}"
            )
        if len(set(self.sigmas)) != len(self.sigmas):
            raise UsageError(f"configuration: sigmas name a noise level twice: {list(self.sigmas)}")


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


PRESETS: dict[str, StudyConfig] = {
    "digits": StudyConfig(network=UNetConfig(resolution=8, channels=24, channel_mult=(1, 1), blocks=1)),
}

FULL = {
    "inits": list(INITIALISATIONS),
    "ratio_inits": list(RATIO_INITIALISATIONS),
    "seeds": [0, 1, 2],
    "distill": {"images": 38_400},
}
"""What ``--full`` changes: all initialisations, both starts of the ratio network, three seeds, longer."""


def resolve_study(name: str, full: bool = False, overrides: dict[str, Any] | None = None) -> StudyConfig:
    """Settings of a preset, or of a TOML file whose key ``preset`` (default digits) names its base."""
    if name in PRESETS:
        config = PRESETS[name]
    elif name.endswith(".toml"):
        mapping = read_toml(Path(name))
        base = mapping.get("preset", "digits")
        if not isinstance(base, str) or base not in PRESETS:
            raise UsageError(f"{name}: unknown preset {base!r}: {choices_hint(str(base), PRESETS)}")
        config = from_mapping(StudyConfig, _with_divergences(mapping), PRESETS[base])
    else:
        raise UsageError(f"unknown preset {name!r}: {choices_hint(name, PRESETS)} (or give a .toml file)")
    if full:
        config = from_mapping(StudyConfig, FULL, config)
    return from_mapping(StudyConfig, overrides or {}, config)


def _with_divergences(mapping: dict[str, Any]) -> dict[str, Any]:
    """The same, with the list ``divergences`` from ``distill.divergence`` where only that is given."""
    inner = mapping.get("distill")
    if isinstance(inner, dict) and "divergence" in inner and "divergences" not in mapping:
        return {**mapping, "divergences": [inner["divergence"]]}
    return mapping


def read_toml(path: Path) -> dict[str, Any]:
    """Contents of a TOML file; what is wrong with it in one line."""
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
    try:
        contents: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no configuration file {path}; give a preset ({', '.join(PRESETS)}) or a .toml file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise explain_os_error(error, path) from None
    return contents
