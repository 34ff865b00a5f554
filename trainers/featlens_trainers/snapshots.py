"""Snapshots: a safetensors file of names, tensors and configuration, loadable by itself, never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.files import atomic_path, explain_os_error
from featlens_trainers.config import one_of, to_mapping
from featlens_trainers.networks.build import bare_denoiser, build_ratio
from featlens_trainers.networks.dit import DiT
from featlens_trainers.networks.ratio import FakeScoreRatio, RatioNetwork
from featlens_trainers.networks.unet import ADMNet, UNet
from featlens_trainers.settings.network import NetworkConfig
from featlens_trainers.settings.ratio import RATIO_KINDS, RatioConfig

__all__ = [
    "load_denoiser",
    "load_ratio",
    "load_weights",
    "read_tensors",
    "save_denoiser",
    "save_ratio",
    "tensor_differences",
    "tensors_digest",
    "write_tensors",
]


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of named tensors."""
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
            facts = {"featlens": text, "digest": tensors_digest(held), "described": _hash(text)}
            save_file(held, temporary, facts)
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
    described = metadata.get("described", _hash(text))
    if metadata.get("digest") != tensors_digest(tensors) or described != _hash(text):
        raise FeatlensError(f"{target} is damaged: it does not match its digest; use an earlier snapshot")
    about = json.loads(text)
    if not isinstance(about, dict):
        raise FeatlensError(f"{target} describes itself by a {type(about).__name__}, expected a table")
    return tensors, about


def save_denoiser(path: os.PathLike[str] | str, denoiser: EDMDenoiser, **about: Any) -> None:
    """Snapshot of a denoiser with a network of any kind; ``about`` adds facts such as ``sigma_init``."""
    described = {
        "kind": "denoiser",
        "network": to_mapping(_config_of(denoiser.network)),
        "sigma_data": denoiser.sigma_data,
        **about,
    }
    write_tensors(path, denoiser.state_dict(), described)


def load_denoiser(path: os.PathLike[str] | str, device: str = "cpu") -> tuple[EDMDenoiser, dict[str, Any]]:
    """Denoiser in evaluation mode and the facts that were stored with it."""
    tensors, about = read_tensors(path)
    config, sigma_data = _described(path, about, "denoiser")
    return _filled(partial(bare_denoiser, config, sigma_data), tensors, path, device), about


def save_ratio(path: os.PathLike[str] | str, ratio: RatioNetwork | FakeScoreRatio, **about: Any) -> None:
    """Snapshot of a ratio network, of the fake score with it where its head sits on that."""
    described = {
        "kind": "ratio",
        "ratio": "fake_score" if isinstance(ratio, FakeScoreRatio) else "encoder",
        "network": to_mapping(ratio.config),
        "sigma_data": ratio.sigma_data,
        **about,
    }
    write_tensors(path, ratio.state_dict(), described)


def load_ratio(
    path: os.PathLike[str] | str, device: str = "cpu"
) -> tuple[RatioNetwork | FakeScoreRatio, dict[str, Any]]:
    """Ratio network in evaluation mode and the facts that were stored with it."""
    tensors, about = read_tensors(path)
    config, sigma_data = _described(path, about, "ratio")
    form = about.get("ratio", "encoder")
    if form not in RATIO_KINDS:
        raise FeatlensError(
            f"{path} holds a ratio network of kind {form!r}, expected one of {', '.join(RATIO_KINDS)}; it "
            "may be of a newer featlens"
        )
    make = partial(build_ratio, config, RatioConfig(form), sigma_data)
    return _filled(make, tensors, path, device), about


def _config_of(network: nn.Module) -> NetworkConfig:
    if not isinstance(network, UNet | ADMNet | DiT):
        raise UsageError(
            f"a snapshot holds a network of featlens (unet, adm or dit), got a {type(network).__name__}; "
            "keep it with the tools of its own library"
        )
    return network.config


def _described(
    path: os.PathLike[str] | str, about: Mapping[str, Any], kind: str
) -> tuple[NetworkConfig, float]:
    """Settings of the network and sigma_data, from the description in a file."""
    if about.get("kind") != kind:
        raise FeatlensError(f"{path} holds a {about.get('kind')!r}, expected a {kind}")
    try:
        config: NetworkConfig = one_of(NetworkConfig, about.get("network", {}), where="network.")
    except UsageError as error:
        raise FeatlensError(f"{path} describes no network of this featlens: {error}") from None
    sigma_data = about.get("sigma_data")
    if not isinstance(sigma_data, int | float) or not 0 < sigma_data < math.inf:
        raise FeatlensError(f"{path} has sigma_data {sigma_data!r}, expected a number above 0; save it anew")
    return config, float(sigma_data)


M = TypeVar("M", bound=nn.Module)


def _filled(
    make: Callable[[], M], tensors: Mapping[str, Tensor], path: os.PathLike[str] | str, device: str
) -> M:
    """Module of ``make`` with the tensors of a file, in evaluation mode."""
    with torch.device("meta"):
        # Without memory, so that a wrong description is found before it asks for any.
        _require_fit(make().state_dict(), tensors, path)
    with torch.random.fork_rng(devices=[]):
        module = make()
    load_weights(module, tensors, path)
    return module.to(device).eval()


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: os.PathLike[str] | str) -> None:
    """Load a state dict; an error names the tensors that do not fit, with both shapes."""
    _require_fit(module.state_dict(), tensors, path)
    module.load_state_dict(dict(tensors))


def _require_fit(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: os.PathLike[str] | str
) -> None:
    wrong = tensor_differences(tensors, own)
    if wrong:
        shown = "; ".join(wrong[:3]) + ("; ..." if len(wrong) > 3 else "")
        raise FeatlensError(
            f"{path} is of another architecture: {len(wrong)} of {len(set(own) | set(tensors))} tensors "
            f"differ: {shown}; use the settings of the network that it was saved from"
        )


def tensor_differences(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each tensor that two state dicts do not both have in one shape, in order of ``here``.

    Examples
    --------
    >>> tensor_differences({"a": torch.zeros(2)}, {"a": torch.zeros(3), "b": torch.zeros(())})
    ["'a' is (2,) there, (3,) here", "'b' is missing there, () here"]
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in side.items()} for side in (there, here)]
    lines = []
    for name in dict.fromkeys([*here, *there]):
        old, new = (side.get(name, "missing") for side in shapes)
        if old != new:
            lines.append(f"{name!r} is {old} there, {new} here")
    return lines
