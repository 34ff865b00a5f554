"""The presets as one table, and how a preset or a TOML file becomes settings.

The defaults were chosen on teacher quality and on stability of training alone; no initialisation was looked
at (docs/results/digits.md tells how).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featlens.errors import UsageError, choices_hint
from featlens.files import explain_os_error
from featlens_trainers.config import from_mapping
from featlens_trainers.networks.unet import UNetConfig
from featlens_trainers.settings import INITIALISATIONS, RATIO_INITIALISATIONS, StudyConfig

__all__ = ["PRESETS", "read_toml", "resolve_study"]

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
