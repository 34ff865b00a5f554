"""The presets as one table, and how a preset or a TOML file becomes settings.

The defaults of digits were chosen on teacher quality and on stability of training alone; no initialisation
was looked at (docs/results/digits.md tells how). cifar10 and imagenet64 are at published scale
(docs/notes/presets.md says which number comes from where).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featlens.errors import UsageError, choices_hint
from featlens.files import explain_os_error
from featlens_trainers.config import from_mapping
from featlens_trainers.settings import (
    RATIO_INITIALISATIONS,
    ADMConfig,
    BodyConfig,
    ClassifierConfig,
    DistillConfig,
    EvaluationConfig,
    FeatureConfig,
    RegressionConfig,
    StudyConfig,
    TeacherConfig,
    UNetConfig,
)

__all__ = ["PRESETS", "overrides_of", "read_toml", "resolve_study"]

MILLION = 1_000_000


def _shapes(resolution: int, network: UNetConfig, teacher: int, student: int) -> StudyConfig:
    """Procedural shapes: a teacher and students of so many images."""
    return StudyConfig(
        preset=f"shapes{resolution}",
        data=f"shapes{resolution}",
        sigma_data=0.5,
        network=network,
        teacher=TeacherConfig(images=teacher, batch=256, lr=1e-3, ramp_images=100_000, ema_half_life=50_000),
        regression=RegressionConfig(
            images=teacher // 2, batch=256, lr=1e-3, ramp_images=100_000, ema_half_life=50_000
        ),
        body=BodyConfig(images=teacher // 2, batch=256, lr=1e-3, ramp_images=100_000, ema_half_life=50_000),
        distill=DistillConfig(images=student, batch=256, lr=1e-4, ratio_lr=2e-4, ema_half_life=20_000),
        classifier=ClassifierConfig(images=400_000, batch=256, lr=1e-3, features=128),
        evaluation=EvaluationConfig(images=5_000, times=10),
    )


def _cifar(name: str, labels: int) -> StudyConfig:
    """CIFAR-10 at the scale of arXiv 2206.00364 (teacher) and of arXiv 2404.04057 (batch of the student)."""
    return StudyConfig(
        preset=name,
        data="cifar-10-binary.tar.gz",
        sigma_data=0.5,
        network=UNetConfig(
            resolution=32, in_channels=3, out_channels=3, channels=128, channel_mult=(2, 2, 2), blocks=4,
            attention_resolutions=(16,), labels=labels, augment_labels=9, dropout=0.13,
        ),
        teacher=TeacherConfig(
            images=200 * MILLION, batch=512, lr=1e-3, ramp_images=10 * MILLION, decay=False, augment=0.12,
            augment_flip=1.0, ema_half_life=500_000,
        ),
        regression=RegressionConfig(
            images=20 * MILLION, batch=512, lr=1e-3, ramp_images=MILLION, ema_half_life=500_000
        ),
        body=BodyConfig(
            images=20 * MILLION, batch=512, lr=1e-3, ramp_images=MILLION, ema_half_life=500_000
        ),
        distill=DistillConfig(
            images=300 * MILLION, batch=256, lr=1e-5, ratio_lr=4e-5, beta2=0.999, ema_half_life=500_000
        ),
        classifier=ClassifierConfig(images=4 * MILLION, batch=256, lr=1e-3, features=128),
        evaluation=EvaluationConfig(images=50_000, times=20),
        features=FeatureConfig(sites=("enc.*block*", "dec.*block*")),
    )  # fmt: skip


def _imagenet64() -> StudyConfig:
    """ImageNet 64 x 64 at the scale of arXiv 2206.00364, with the ADM network."""
    return StudyConfig(
        preset="imagenet64",
        data="imagenet-64x64.zip",
        sigma_data=0.5,
        network=ADMConfig(labels=1000, dropout=0.1),
        teacher=TeacherConfig(
            images=2_500 * MILLION, batch=4096, lr=1e-4, ramp_images=10 * MILLION, decay=False,
            ema_half_life=50 * MILLION,
        ),
        regression=RegressionConfig(
            images=50 * MILLION, batch=4096, lr=1e-4, ramp_images=5 * MILLION, ema_half_life=2 * MILLION
        ),
        body=BodyConfig(
            images=50 * MILLION, batch=4096, lr=1e-4, ramp_images=5 * MILLION, ema_half_life=2 * MILLION
        ),
        distill=DistillConfig(
            images=1_000 * MILLION, batch=8192, lr=4e-6, ratio_lr=1.6e-5, beta2=0.999,
            ema_half_life=2 * MILLION,
        ),
        classifier=ClassifierConfig(images=20 * MILLION, batch=512, lr=1e-3, features=256),
        evaluation=EvaluationConfig(images=50_000, times=20),
        features=FeatureConfig(sites=("enc.*block*", "dec.*block*")),
    )  # fmt: skip


PRESETS: dict[str, StudyConfig] = {
    "digits": StudyConfig(network=UNetConfig(resolution=8, channels=24, channel_mult=(1, 1), blocks=1)),
    "shapes32": _shapes(
        32,
        UNetConfig(
            resolution=32, in_channels=3, out_channels=3, channels=64, channel_mult=(1, 2, 2), blocks=2,
            attention_resolutions=(16,),
        ),
        teacher=4 * MILLION,
        student=MILLION,
    ),
    "cifar10": _cifar("cifar10", labels=0),
    "cifar10-cond": _cifar("cifar10-cond", labels=10),
    "imagenet64": _imagenet64(),
}  # fmt: skip

FULL = {
    "inits": ["teacher", "features_only", "single_sigma", "map_regressed", "prior_only", "random"],
    "ratio_inits": list(RATIO_INITIALISATIONS),
    "seeds": [0, 1, 2],
}
"""What ``--full`` changes: starts of the ratio network, three seeds, and students train twice as long."""


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
        longer = {"distill": {"images": 2 * config.distill.images}}
        config = from_mapping(StudyConfig, FULL | longer, config)
    return from_mapping(StudyConfig, _with_divergences(overrides or {}), config)


def overrides_of(pairs: Sequence[str]) -> dict[str, Any]:
    """Nested settings of ``section.key=value`` texts; values are TOML, and bare words strings.

    >>> overrides_of(["distill.lr=1e-4", "network.channels=64", "data=shapes32"])
    {'distill': {'lr': 0.0001}, 'network': {'channels': 64}, 'data': 'shapes32'}
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise UsageError(f"--set {pair!r}: expected section.key=value, such as distill.lr=1e-4")
        table = out
        for name in names[:-1]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UsageError(f"--set {pair!r}: {name!r} is a value and a table at once; give one of them")
        table[names[-1]] = _toml_value(text.strip())
    return out


def _toml_value(text: str) -> Any:
    toml = _toml()
    try:
        return toml.loads(f"value = {text}")["value"]
    except toml.TOMLDecodeError:
        return text


def _with_divergences(mapping: dict[str, Any]) -> dict[str, Any]:
    """The same, with the list ``divergences`` from ``distill`` where only that is given."""
    inner = mapping.get("distill")
    if not isinstance(inner, dict) or "divergences" in mapping:
        return mapping
    direction = inner.get("direction", "ratio")
    if direction != "ratio":
        return {**mapping, "divergences": [direction]}
    return {**mapping, "divergences": [inner["divergence"]]} if "divergence" in inner else mapping


def _toml() -> Any:
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
    return tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """Contents of a TOML file; what is wrong with it in one line."""
    toml = _toml()
    try:
        contents: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no configuration file {path}; give a preset ({', '.join(PRESETS)}) or a .toml file"
        ) from None
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise explain_os_error(error, path) from None
    return contents
