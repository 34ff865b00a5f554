"""Networks released by EDM (arXiv 2206.00364) as denoisers of ours.

The size of a network is read off the names and shapes of its tensors, which are the released ones, and held
against the constructor's arguments where the file has them. What would compute something else than our
network is refused.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError
from featlens_trainers.convert.assemble import assemble
from featlens_trainers.convert.machine import Instance, shown
from featlens_trainers.convert.pickles import Module, module_of, modules, read_pickle, sha256_of
from featlens_trainers.convert.storages import StoredTensor
from featlens_trainers.settings.network import ADMConfig, UNetConfig

__all__ = ["Released", "read_edm"]

_FAMILIES = {"SongUNet": "unet", "DhariwalUNet": "adm"}
_OTHERS = {
    "VPPrecond": "variance-preserving preconditioning",
    "VEPrecond": "variance-exploding preconditioning",
    "iDDPMPrecond": "the preconditioning of improved DDPM",
    "Precond": "EDM2's preconditioning and magnitude-preserving layers",
}
_KEPT_KEYS = ("ema", "net")
_ONLY = {
    "encoder_type": "standard",
    "decoder_type": "standard",
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "channel_mult_emb": 4,
    "resample_filter": [1, 1],
}
"""Arguments of the constructor that have one value here."""

_BLOCKS = {
    "unet": {"skip_scale": math.sqrt(0.5), "adaptive_scale": False},
    "adm": {"skip_scale": 1.0, "adaptive_scale": True},
}
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Released:
    """A network in a file of EDM's.

    Attributes
    ----------
    path
        The file.
    config
        Its size.
    sigma_data
        Standard deviation of the data that it was trained for.
    tensors
        By the names of our network.
    origin
        Where it comes from: file, its SHA-256, entry, classes, arguments that have no counterpart.
    """

    path: Path
    config: UNetConfig | ADMConfig
    sigma_data: float
    tensors: Mapping[str, StoredTensor]
    origin: dict[str, Any]

    def denoiser(self) -> EDMDenoiser:
        """Denoiser with the file's weights, float32, in evaluation mode.

        Raises
        ------
        FeatlensError
            Tensors are missing, left over or of another shape; they are named.
        """
        sizes = {f"network.{name}": tensor.size for name, tensor in self.tensors.items()}
        return assemble(
            self.config,
            self.sigma_data,
            sizes,
            lambda name: self.tensors[name.removeprefix("network.")].tensor().float(),
            str(self.path),
        )


def read_edm(path: Path) -> Released:
    """Network in a ``network-snapshot-*.pkl`` of EDM or a released ``edm-*.pkl``; none of its code runs.

    Raises
    ------
    FeatlensError
        The file is damaged or refers to unknown names, or the network is none that can be converted.
    """
    root = read_pickle(path)
    try:
        key, wrapper = _wrapper(root)
        family, network = _network(wrapper)
        found = modules(network)
        tensors = _placed(found)
        config = _config(family, found, tensors)
        _require_same_settings(family, config, found)
        origin = {
            "format": "EDM pickle",
            "file": path.name,
            "sha256": sha256_of(path),
            "entry": key,
            "classes": [wrapper.class_name, found[""].class_name],
            "without_counterpart": _left_out(wrapper, found[""]),
        }
        return Released(path, config, _sigma_data(wrapper), tensors, origin)
    except FeatlensError as error:
        raise FeatlensError(f"{path}: {error}") from None


def _wrapper(root: Any) -> tuple[str, Module]:
    """Entry of the file and the preconditioned network in it."""
    key, value = "", root
    if isinstance(root, dict):
        key = next((name for name in _KEPT_KEYS if name in root), "")
        if not key:
            there = ", ".join(shown(name, 30) for name in list(root)[:8]) or "nothing"
            raise FeatlensError(
                f"expected an entry 'ema', as EDM writes it, found {there}; give another file"
            )
        value = root[key]
    if not isinstance(value, Instance):
        raise FeatlensError(
            f"expected a network, found a {type(value).__name__}; give a network-snapshot-*.pkl of EDM"
        )
    wrapper = module_of(value, key)
    if wrapper.class_name != "EDMPrecond":
        known = _OTHERS.get(wrapper.class_name)
        what = f"{wrapper.class_name} ({known})" if known else shown(wrapper.class_name)
        raise FeatlensError(
            f"expected a network with EDMPrecond, found {what}, which computes something else from the same "
            "weights; wrap it in a denoiser of your own and give python:module:function"
        )
    return key, wrapper


def _network(wrapper: Module) -> tuple[str, Any]:
    network = wrapper.attributes.get("_modules")
    network = network.get("model") if isinstance(network, dict) else None
    if not isinstance(network, Instance):
        raise FeatlensError("expected EDMPrecond to hold a module 'model', found none; the file is damaged")
    family = _FAMILIES.get(network.class_name)
    if family is None:
        raise FeatlensError(
            f"expected a {' or '.join(_FAMILIES)}, found a {shown(network.class_name)}; wrap it in a "
            "denoiser of your own and give python:module:function"
        )
    return family, network


def _placed(found: Mapping[str, Module]) -> dict[str, StoredTensor]:
    """Tensors by name without the box filters, which our network does not store."""
    tensors: dict[str, StoredTensor] = {}
    for module in found.values():
        if module.class_name == "FourierEmbedding":
            raise FeatlensError(_unsupported("embedding_type", "fourier"))
        for name, tensor in module.tensors():
            if not name.endswith("resample_filter"):
                tensors[name] = tensor
            elif tensor.size != (1, 1, 2, 2) or set(tensor.tensor().flatten().tolist()) != {0.25}:
                raise FeatlensError(_unsupported("resample_filter", f"at {shown(name)}"))
    for name, tensor in tensors.items():
        if re.search(r"_(aux_residual|aux_skip|aux_down)\.", name) and name.startswith("enc."):
            raise FeatlensError(_unsupported("encoder_type", f"with {shown(name)}"))
        if re.search(r"_aux_up\.", name):
            raise FeatlensError(_unsupported("decoder_type", f"with {shown(name)}"))
        if tensor.dtype not in _FLOATS:
            raise FeatlensError(
                f"expected {' or '.join(_FLOATS)}, found {tensor.dtype} at {shown(name)}; it has no exact "
                "float32 form"
            )
    total = sum(math.prod(tensor.size) * tensor.storage.width for tensor in tensors.values())
    if total > sum({id(tensor.storage): len(tensor.storage.data) for tensor in tensors.values()}.values()):
        raise FeatlensError(
            "tensors share values, which those of EDM never do; the file is of a changed class"
        )
    return tensors


def _unsupported(name: str, value: str) -> str:
    return (
        f"{name} {value} is not supported: expected {_ONLY[name]!r}, as in DDPM++ and ADM; networks of "
        "NCSN++ (the files named *-ve.pkl) have no counterpart here, take the *-vp.pkl of the same data"
    )


# --- size ---------------------------------------------------------------------------------------------------


def _config(
    family: str, found: Mapping[str, Module], tensors: Mapping[str, StoredTensor]
) -> UNetConfig | ADMConfig:
    levels = _levels(tensors)
    resolution = next(iter(levels))
    channels = _size(tensors, "map_layer0.weight", 2)[1]
    last = f"dec.{resolution}x{resolution}_aux_conv.weight" if family == "unet" else "out_conv.weight"
    factors = []
    for at in levels:
        width = _size(tensors, f"enc.{at}x{at}_block0.conv1.weight", 4)[0]
        if not channels or width % channels:
            raise FeatlensError(f"level {at} has {width} channels, no multiple of {channels}")
        factors.append(width // channels)
    sizes: dict[str, Any] = {
        "resolution": resolution,
        "in_channels": _size(tensors, f"enc.{resolution}x{resolution}_conv.weight", 4)[1],
        "out_channels": _size(tensors, last, 4)[0],
        "channels": channels,
        "channel_mult": tuple(factors),
        "blocks": levels[resolution],
        "attention_resolutions": tuple(at for at in levels if f"enc.{at}x{at}_block0.qkv.weight" in tensors),
    }
    for name, layer in (("labels", "map_label.weight"), ("augment_labels", "map_augment.weight")):
        sizes[name] = _size(tensors, layer, 2)[1] if layer in tensors else 0
    arguments = found[""].arguments
    _require_arguments(arguments, sizes)
    sizes["dropout"] = _dropout(arguments, found)
    if family == "adm":
        return ADMConfig(**sizes)
    heads = {_number(module, "num_heads", 1) for name, module in found.items() if f"{name}.qkv" in found}
    return UNetConfig(**sizes, heads=int(next(iter(heads), 1)))


def _levels(tensors: Mapping[str, StoredTensor]) -> dict[int, int]:
    """Blocks of each level of the encoder by its resolution, finest first."""
    blocks: dict[int, set[str]] = {}
    for name in tensors:
        matched = re.match(r"enc\.(\d{1,5})x\1_block(\d{1,4})\.", name)
        if matched:
            blocks.setdefault(int(matched[1]), set()).add(matched[2])
    levels = {at: len(blocks[at]) for at in sorted(blocks, reverse=True)}
    resolutions = list(levels)
    if not levels or any(fine != 2 * coarse for fine, coarse in itertools.pairwise(resolutions)):
        raise FeatlensError(
            f"expected blocks named enc.32x32_block0 on resolutions that halve, found {resolutions[:8]}"
        )
    if len(set(levels.values())) > 1:
        raise FeatlensError(f"expected equally many blocks on every level, found {list(levels.values())[:8]}")
    return levels


def _size(tensors: Mapping[str, StoredTensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].size) != dimensions:
        raise FeatlensError(f"expected a tensor {name} of {dimensions} dimensions, found none")
    return tensors[name].size


def _require_arguments(arguments: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Refuse constructor arguments that our network has not, or that contradict the tensors."""
    for name, only in _ONLY.items():
        if name in arguments and _plain(arguments[name]) != only:
            raise FeatlensError(_unsupported(name, shown(repr(_plain(arguments[name])))))
    told = {
        "img_resolution": sizes["resolution"],
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["out_channels"],
        "label_dim": sizes["labels"],
        "augment_dim": sizes["augment_labels"],
        "model_channels": sizes["channels"],
        "channel_mult": list(sizes["channel_mult"]),
        "num_blocks": sizes["blocks"],
    }
    for name, value in told.items():
        if name in arguments and _plain(arguments[name]) != value:
            raise FeatlensError(
                f"the constructor was given {name} {shown(_plain(arguments[name]))}, the tensors say "
                f"{value}; the file is damaged or of a changed class"
            )


def _plain(value: Any) -> Any:
    """A number, a text or a short list of numbers; anything else as a word."""
    if isinstance(value, list | tuple) and len(value) <= 64 and all(type(n) in (int, float) for n in value):
        return list(value)
    return value if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _dropout(arguments: Mapping[str, Any], found: Mapping[str, Module]) -> float:
    value = arguments.get("dropout")
    if value is None:
        values = {_number(module, "dropout", 0.0) for module in found.values()}
        value = max(values)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise FeatlensError(f"expected a dropout of at least 0 and below 1, got {shown(_plain(value))}")
    return float(value)


def _number(module: Module, name: str, default: float) -> float:
    value = module.attributes.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) else default


# --- settings that no tensor shows --------------------------------------------------------------------------


def _require_same_settings(family: str, config: UNetConfig | ADMConfig, found: Mapping[str, Module]) -> None:
    """Refuse numbers inside modules that would make the same weights compute something else."""
    eps = 1e-6 if family == "unet" else 1e-5
    for path, module in found.items():
        wanted: dict[str, Any] = {}
        if module.class_name == "GroupNorm":
            wanted = {"eps": eps}
        elif module.class_name == "UNetBlock":
            wanted = dict(_BLOCKS[family])
            width = _number(module, "out_channels", 0)
            if f"{path}.qkv" in found:
                heads = config.heads if isinstance(config, UNetConfig) else config.heads(int(width))
                wanted["num_heads"] = heads
        elif module.class_name == "PositionalEmbedding":
            wanted = {"endpoint": family == "unet", "max_positions": 10_000}
        for name, value in wanted.items():
            there = module.attributes.get(name, value)
            if not isinstance(there, int | float) or not math.isclose(there, value, rel_tol=1e-6):
                raise FeatlensError(
                    f"{shown(path)} has {name} {shown(_plain(there))}, our network {value}; the file is of a "
                    "changed class: wrap it in a denoiser of your own"
                )


def _sigma_data(wrapper: Module) -> float:
    value = wrapper.attributes.get("sigma_data", wrapper.arguments.get("sigma_data", 0.5))
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FeatlensError(f"expected a sigma_data above 0, got {shown(_plain(value))}")
    return float(value)


def _left_out(wrapper: Module, network: Module) -> dict[str, Any]:
    """Settings that act in training or in half precision only, kept for the record."""
    kept = {}
    for name in ("use_fp16", "sigma_min", "sigma_max", "label_dropout"):
        value = wrapper.attributes.get(name, network.attributes.get(name))
        if isinstance(value, int | float) and math.isfinite(value):
            kept[name] = value
    return kept
