"""Files as EDM's training code writes them, made without it: fake classes, the true form of the pickle."""

from __future__ import annotations

import collections
import contextlib
import copyreg
import math
import pickle
import sys
import types

import numpy as np
import torch
from torch import nn

from featlens_trainers import build_denoiser
from featlens_trainers.networks.layers import Block
from featlens_trainers.settings.network import ADMConfig, UNetConfig

UNET = UNetConfig(
    resolution=16, in_channels=3, out_channels=3, channels=8, channel_mult=(1, 2), blocks=2,
    attention_resolutions=(8,), labels=4, augment_labels=9, dropout=0.13,
)  # fmt: skip
ADM = ADMConfig(
    resolution=16, channels=8, channel_mult=(2, 3), blocks=1, attention_resolutions=(8,), labels=4,
    channels_per_head=64, dropout=0.1,
)  # fmt: skip

NAMES = {nn.Conv2d: "Conv2d", nn.Linear: "Linear", nn.GroupNorm: "GroupNorm", Block: "UNetBlock"}


class EasyDict(dict):
    """EDM's dict with attributes."""


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


def reconstruct(meta):
    raise AssertionError("no code of the file may run")


reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"


class Persistent:
    """Pickled as an object of EDM's persistence."""

    def __init__(self, name, state):
        self.name, self.state = name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": "import os; os.nothing()\n" * 3}
        return reconstruct, ({**meta, "class_name": self.name, "state": self.state},)


def plain(name, state, old=False):
    """Instance of a class of ``training.networks``, pickled by reference to its class."""
    kind = getattr(sys.modules["training.networks"], name)
    made = object.__new__(kind)
    made.__dict__.update(state)
    made.__dict__["_test_old"] = old
    return made


def _reduce(self):
    state = {key: value for key, value in self.__dict__.items() if key != "_test_old"}
    if self._test_old:
        return copyreg._reconstructor, (type(self), object, None), state
    return copyreg.__newobj__, (type(self),), state


CLASSES = (
    *("EDMPrecond", "VPPrecond", "SongUNet", "DhariwalUNet", "UNetBlock", "Conv2d", "Linear", "GroupNorm"),
    *("PositionalEmbedding", "FourierEmbedding", "SomethingElse"),
)


@contextlib.contextmanager
def edm_modules():
    """EDM's modules can be imported, for writing only."""
    fake = {name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib")}
    fake |= {name: types.ModuleType(name) for name in ("dnnlib.util", "training", "training.networks")}
    fake["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    fake["dnnlib.util"].EasyDict = EasyDict
    for name in CLASSES:
        made = type(name, (), {"__module__": "training.networks", "__reduce__": _reduce})
        setattr(fake["training.networks"], name, made)
    known = {name: sys.modules.get(name) for name in fake}
    sys.modules.update(fake)
    try:
        yield
    finally:
        for name, before in known.items():
            sys.modules.pop(name)
            if before is not None:
                sys.modules[name] = before


def denoiser_of(config, sigma_data=0.5, seed=3):
    denoiser = build_denoiser(config, sigma_data, seed).eval()
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=numbers))
    return denoiser


def arguments_of(config):
    """Arguments of the constructor under EDM's names."""
    return {
        "img_resolution": config.resolution,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "label_dim": config.labels,
        "augment_dim": config.augment_labels,
        "model_channels": config.channels,
        "channel_mult": list(config.channel_mult),
        "num_blocks": config.blocks,
        "attn_resolutions": list(config.attention_resolutions),
        "dropout": config.dropout,
    }


class Writer:
    """Describes a denoiser of ours as EDM's classes would hold it.

    ``style`` is ``persistent``, ``class`` or ``old``; ``change(path, name, state)`` may spoil any module.
    """

    def __init__(self, style="persistent", arguments=True, change=None):
        self.style, self.arguments, self.change = style, arguments, change

    def made(self, path, name, state):
        if self.change is not None:
            name = self.change(path, name, state) or name
        if self.style == "persistent":
            return Persistent(name, state)
        return plain(name, state, self.style == "old")

    def state(self, module, **more):
        base = {"training": False, "_backward_hooks": collections.OrderedDict(), "_parameters": {}}
        base |= {"_non_persistent_buffers_set": set(), "_buffers": {}, "_modules": {}}
        return {
            **base,
            **({"_parameters": collections.OrderedDict(module._parameters)} if module else {}),
            **more,
        }

    def module(self, module, path):
        if isinstance(module, nn.ModuleDict):
            held = nn.ModuleDict()
            held._modules = {key: self.module(child, f"{path}.{key}") for key, child in module.items()}
            return held
        children = {
            key: self.module(child, f"{path}.{key}" if path else key)
            for key, child in module._modules.items()
            if child is not None
        }
        more = {}
        if isinstance(module, nn.GroupNorm):
            more = {"num_groups": module.num_groups, "eps": module.eps}
        if isinstance(module, Block):
            unet = not hasattr(module, "family") or module.family.skip_scale != 1
            scale = np.sqrt(0.5) if unet else 1
            more = {"skip_scale": scale, "adaptive_scale": not unet, "out_channels": module.channels_out}
            more |= {"num_heads": module.heads if module.attention else 0, "dropout": module.dropout}
            if module.resample is not None:
                children.setdefault("skip", self.made(f"{path}.skip", "Conv2d", self.state(None)))
                for name in ("conv0", "skip"):
                    state = children[name].state if self.style == "persistent" else children[name].__dict__
                    state["_buffers"].setdefault("resample_filter", torch.full((1, 1, 2, 2), 0.25))
        return self.made(path, NAMES.get(type(module), "?"), self.state(module, _modules=children, **more))

    def network(self, denoiser):
        config = denoiser.network.config
        unet = isinstance(config, UNetConfig)
        children = {
            name: self.module(child, name)
            for name, child in denoiser.network._modules.items()
            if child is not None
        }
        noise = {"num_channels": config.channels, "max_positions": 10000, "endpoint": unet}
        children["map_noise"] = self.made("map_noise", "PositionalEmbedding", self.state(None, **noise))
        more = {"label_dropout": np.float64(0)}
        if self.arguments:
            more |= {"_init_args": (), "_init_kwargs": EasyDict(arguments_of(config))}
        return self.made(
            "", "SongUNet" if unet else "DhariwalUNet", self.state(None, _modules=children, **more)
        )

    def snapshot(self, denoiser, wrapper="EDMPrecond"):
        state = self.state(None, _modules={"model": self.network(denoiser)})
        state |= {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": denoiser.sigma_data, "use_fp16": False}
        loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": np.float32(1.2)})
        pipe = Persistent("AugmentPipe", {"p": 0.12, "_init_kwargs": {"scale": np.arange(3.0), "n": {1, 2}}})
        data = EasyDict(class_name="training.dataset.ImageFolderDataset", path="cifar.zip")
        network = self.made("wrapper", wrapper, state)
        return {"ema": network, "loss_fn": loss, "augment_pipe": pipe, "dataset_kwargs": data}


def write_edm(path, denoiser, protocol=4, key=None, **options):
    """A file of EDM with the denoiser in it."""
    with edm_modules():
        snapshot = Writer(**options).snapshot(denoiser)
        path.write_bytes(pickle.dumps(snapshot if key is None else snapshot[key], protocol))
    return path
