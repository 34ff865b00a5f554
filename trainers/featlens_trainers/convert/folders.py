"""Folders that a conversion writes: a run of ours, and a folder as diffusers reads it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens.files import explain_os_error, make_folder, write_text
from featlens_trainers.config import to_mapping
from featlens_trainers.convert.assemble import assemble
from featlens_trainers.convert.machine import shown
from featlens_trainers.convert.names import MODEL, PIPELINE, WEIGHTS, is_ours
from featlens_trainers.runs import Run, read_run
from featlens_trainers.snapshots import save_denoiser

__all__ = ["Converted", "new_folder", "read_diffusers_folder", "write_diffusers_folder", "write_run_folder"]

DEFAULT_SIGMA_INIT = 2.5
"""Noise level of the one-step map where the source says none (METHOD: SiD, SiDA, Uni-Instruct)."""


@dataclass(frozen=True)
class Converted:
    """A denoiser on its way from one form to another.

    Attributes
    ----------
    denoiser
        The network with its weights.
    kind
        ``teacher``, ``student`` or the kind of control that the run is.
    sigma_init
        Noise level from which a one-step generator starts.
    origin
        Where it comes from, for the record.
    """

    denoiser: EDMDenoiser
    kind: str
    sigma_init: float
    origin: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """Digest, sizes and settings, as both forms record them."""
        network = self.denoiser.network
        return {
            "kind": self.kind,
            "network": to_mapping(network.config),
            "sigma_data": self.denoiser.sigma_data,
            "sigma_init": self.sigma_init,
            "tensors": len(self.denoiser.state_dict()),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "digest": weights_digest(self.denoiser),
        }


def write_run_folder(folder: Path, converted: Converted) -> list[str]:
    """Write the denoiser as a finished run of ours; names of the files."""
    facts = converted.facts()
    settings = {key: facts[key] for key in ("network", "sigma_data", "sigma_init")}
    run = Run(folder, converted.kind, {**settings, "origin": dict(converted.origin)})
    save_denoiser(run.snapshot_path(0), converted.denoiser, images=0, sigma_init=converted.sigma_init)
    run.finish(**{key: facts[key] for key in ("tensors", "parameters", "digest")}, converted=True)
    return ["run.json", "snapshots/img-00000000/ema.safetensors"]


def write_diffusers_folder(folder: Path, converted: Converted) -> list[str]:
    """Write the denoiser as a pipeline of diffusers, which is not needed for it; names of the files."""
    from safetensors.torch import save_file

    facts = converted.facts()
    version = {"_diffusers_version": _diffusers_version()}
    config = {
        "_class_name": MODEL[1],
        **version,
        **{key: facts[key] for key in ("network", "sigma_data", "sigma_init", "kind")},
    }
    index = {"_class_name": PIPELINE[1], **version, "unet": list(MODEL)}
    make_folder(folder / "unet")
    write_text(folder / "model_index.json", json.dumps(index, indent=2) + "\n")
    write_text(folder / "unet" / "config.json", json.dumps(config, indent=2) + "\n")
    weights = {f"denoiser.{name}": held for name, held in converted.denoiser.state_dict().items()}
    target = folder / "unet" / WEIGHTS
    try:
        save_file({name: held.cpu().contiguous() for name, held in weights.items()}, target, {"format": "pt"})
    except Exception as error:
        # safetensors wraps operating-system errors in its own type.
        raise explain_os_error(
            error if isinstance(error, OSError) else OSError(str(error)), target
        ) from error
    return ["model_index.json", "unet/config.json", f"unet/{WEIGHTS}"]


def _diffusers_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("diffusers")
    except PackageNotFoundError:
        return "0.30.0"


def read_diffusers_folder(folder: Path) -> Converted:
    """Denoiser of a folder of :func:`write_diffusers_folder`, or of the ``unet`` in it.

    Raises
    ------
    FeatlensError
        The settings are none of ours, or the weights are missing, damaged or of another network.
    """
    from safetensors import SafetensorError, safe_open

    from featlens_trainers.convert.names import network_config

    inner = folder / "unet" if (folder / "model_index.json").is_file() else folder
    settings = _settings(inner / "config.json")
    target = inner / WEIGHTS
    if not target.is_file():
        raise FeatlensError(f"{inner} has no {WEIGHTS}; convert the run again, or copy all of its files")
    try:
        config = network_config(settings["network"])
        sigma_data, sigma_init = float(settings["sigma_data"]), float(settings["sigma_init"])
        kind = str(settings.get("kind", "teacher"))
        if not (0 < sigma_data < math.inf and 0 < sigma_init < math.inf and kind.isidentifier()):
            raise ValueError(f"sigma_data {sigma_data}, sigma_init {sigma_init}, kind {kind[:40]!r}")
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise FeatlensError(f"{inner}/config.json has wrong settings ({shown(error, 200)})") from None
    try:
        with safe_open(target, framework="pt") as file:
            sizes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            denoiser = assemble(
                config,
                sigma_data,
                {name.removeprefix("denoiser."): size for name, size in sizes.items()},
                lambda name: file.get_tensor(f"denoiser.{name}"),
                str(target),
            )
    except (SafetensorError, OSError) as error:
        raise FeatlensError(
            f"{target} is damaged or no safetensors file ({shown(error, 100)}); convert the run again"
        ) from None
    return Converted(denoiser, kind, sigma_init, {"format": "diffusers folder", "file": folder.name})


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeatlensError(
            f"{path} cannot be read as JSON ({shown(error, 100)}); convert the run again"
        ) from None
    if not isinstance(found, dict):
        raise FeatlensError(f"{path}: expected a JSON object, got a {type(found).__name__}")
    return found


# --- a folder that is there whole or not at all -------------------------------------------------------------


@contextlib.contextmanager
def new_folder(out: Path, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``out``, which becomes ``out`` if the block succeeds, else is removed.

    Raises
    ------
    UsageError
        ``out`` is there and ``force`` is not given, or is nothing that a conversion wrote.
    """
    require_free(out, force)
    temporary = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    try:
        make_folder(temporary)
        yield temporary
        (temporary / ".lock").unlink(missing_ok=True)
        # It may have been made since.
        require_free(out, force)
        _put(temporary, out)
    except (OSError, FeatlensError) as error:
        known = explain_os_error(error, out) if isinstance(error, OSError) else error
        # The temporary folder is gone when this is read, and conversions have no -o.
        said = str(known).replace(str(temporary), str(out))
        raise type(known)(said.replace("another output with -o", "another name")) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = temporary.with_suffix(".old")
    out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_free(out: Path, force: bool) -> None:
    """Refuse a place where something is, unless it was made by a conversion and may be replaced."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"{out}: expected a new folder, found a file or a link; choose another name")
    if not any(out.iterdir()):
        return
    if not force:
        raise UsageError(f"{out} is there already; choose another name, or replace it with --force")
    if not _is_conversion(out):
        raise UsageError(
            f"{out} was not written by featlens convert, and --force replaces nothing else; choose another "
            "name or remove it yourself"
        )


def _is_conversion(out: Path) -> bool:
    try:
        record = read_run(out)
    except FeatlensError:
        return False
    if record is not None:
        return bool(record.get("info", {}).get("converted"))
    return is_ours(out)
