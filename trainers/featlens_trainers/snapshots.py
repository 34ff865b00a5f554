"""Snapshots: a safetensors file of names, tensors and configuration, loadable by itself, never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError
from featlens.files import atomic_path, explain_os_error
from featlens_trainers.config import from_mapping, to_mapping
from featlens_trainers.networks import UNet, UNetConfig

__all__ = ["load_denoiser", "read_tensors", "save_denoiser", "write_tensors"]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        held = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{tuple(held.shape)}|{held.dtype}|".encode())
        sha.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_tensors(
    path: os.PathLike[str] | str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write named tensors and a JSON description into one safetensors file, atomically and with a digest."""
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(about))
    with atomic_path(path) as temporary:
        try:
            save_file(held, temporary, {"featlens": text, "digest": _digest(held), "described": _hash(text)})
        except OSError:
            raise
        except Exception as error:
            # safetensors wraps operating-system errors in its own type.
            raise explain_os_error(OSError(str(error)), path) from error


def read_tensors(path: os.PathLike[str] | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file of :func:`write_tensors`; a damaged file is an error."""
    from safetensors import SafetensorError, safe_open

    target = Path(path)
    if not target.is_file():
        raise FeatlensError(f"no file {target}; expected a safetensors snapshot")
    try:
        with safe_open(target, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise FeatlensError(
            f"{target} is damaged or no safetensors file ({' '.join(str(error).split())[:100]})"
        ) from None
    if "featlens" not in metadata:
        raise FeatlensError(
            f"{target} is a safetensors file of another program; expected a snapshot of featlens"
        )
    text = metadata["featlens"]
    if metadata.get("digest") != _digest(tensors) or metadata.get("described", _hash(text)) != _hash(text):
        raise FeatlensError(f"{target} is damaged: it does not match its digest; use an earlier snapshot")
    return tensors, json.loads(text)


def save_denoiser(path: os.PathLike[str] | str, denoiser: EDMDenoiser, **about: Any) -> None:
    """Snapshot of an EDM U-Net denoiser; ``about`` adds facts such as ``sigma_init``."""
    network = denoiser.network
    assert isinstance(network, UNet)
    described = {
        "kind": "denoiser",
        "network": to_mapping(network.config),
        "sigma_data": denoiser.sigma_data,
        **about,
    }
    write_tensors(path, denoiser.state_dict(), described)


def load_denoiser(path: os.PathLike[str] | str, device: str = "cpu") -> tuple[EDMDenoiser, dict[str, Any]]:
    """Denoiser in evaluation mode and the facts that were stored with it."""
    tensors, about = read_tensors(path)
    if about.get("kind") != "denoiser":
        raise FeatlensError(f"{path} holds a {about.get('kind')!r}, expected a denoiser")
    config = from_mapping(UNetConfig, about["network"])
    shape = (config.in_channels, config.resolution, config.resolution)
    with torch.random.fork_rng(devices=[]):
        denoiser = EDMDenoiser(UNet(config), shape, config.labels, float(about["sigma_data"]))
    load_weights(denoiser, tensors, path)
    return denoiser.to(device).eval(), about


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: os.PathLike[str] | str) -> None:
    """Load a state dict; an error names the tensors that do not fit."""
    own = module.state_dict()
    wrong = sorted(
        [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
        + [name for name in tensors if name not in own]
    )
    if wrong:
        raise FeatlensError(
            f"{path} is of another architecture: {len(wrong)} tensors differ, first {wrong[0]!r}"
        )
    module.load_state_dict(dict(tensors))
