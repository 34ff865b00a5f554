"""Names that a folder of diffusers has when it is one of ours, and what kind of thing a path is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.errors import UsageError, choices_hint

if TYPE_CHECKING:
    from featlens_trainers.settings.network import NetworkConfig

__all__ = ["MODEL", "PIPELINE", "WEIGHTS", "is_ours", "network_config", "recognise"]

MODEL = ("featlens_trainers.diffusers_model", "DenoiserModel")
PIPELINE = ("featlens_trainers.diffusers_model", "OneStepPipeline")
WEIGHTS = "diffusion_pytorch_model.safetensors"

_EXPECTED = (
    "expected a .pkl of EDM, a run of featlens (a folder with run.json, or a snapshot of it) or a folder "
    "that featlens convert wrote"
)


def class_name(folder: Path) -> str | None:
    """Class that a folder of diffusers names, of the network or else of the pipeline; None if it is none."""
    for name in ("config.json", "unet/config.json", "model_index.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get("_class_name"), str):
            return str(found["_class_name"])
    return None


def is_ours(folder: Path) -> bool:
    """Whether a folder is one of diffusers that holds our network."""
    return class_name(folder) == MODEL[1]


def network_config(mapping: Mapping[str, Any]) -> NetworkConfig:
    """Settings of a network of any kind from a mapping."""
    from featlens_trainers.config import from_mapping
    from featlens_trainers.settings.network import ADMConfig, DiTConfig, UNetConfig

    families: dict[str, type[NetworkConfig]] = {"unet": UNetConfig, "adm": ADMConfig, "dit": DiTConfig}
    if not isinstance(mapping, Mapping):
        raise UsageError(f"network: expected a table of settings, got a {type(mapping).__name__}")
    kind = mapping.get("kind", "unet")
    if kind not in families:
        raise UsageError(f"network: unknown kind {str(kind)[:60]!r}: {choices_hint(str(kind), families)}")
    return from_mapping(families[kind], mapping)


def recognise(path: Path) -> str:
    """What is at a path, by what is in it: ``edm``, ``run`` or ``diffusers``.

    Raises
    ------
    UsageError
        It is nothing that can be converted.
    """
    from featlens_trainers.convert.pickles import is_pickle

    if path.is_dir():
        if (path / "run.json").is_file() or (path / "ema.safetensors").is_file():
            return "run"
        named = class_name(path)
        if named == MODEL[1]:
            return "diffusers"
        if named is not None:
            raise UsageError(
                f"{path} holds a {named[:60]!r} of diffusers, which computes other things than our networks "
                "and cannot become one; featlens.load and featlens extract read it directly"
            )
        raise UsageError(f"{path}: {_EXPECTED}, got another folder; check the path")
    if not path.is_file():
        raise UsageError(f"{path}: {_EXPECTED}, found nothing there; featlens downloads nothing")
    if is_pickle(path):
        return "edm"
    with path.open("rb") as file:
        start = file.read(9)
    if len(start) == 9 and start[8:] == b"{":
        return "run"
    raise UsageError(f"{path}: {_EXPECTED}, got a file of another kind; check the path")
