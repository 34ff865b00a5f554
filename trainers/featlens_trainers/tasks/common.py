"""What the trainings of a study share: data, evaluation images, and the facts that a run records."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens.files import write_bytes
from featlens.samples import SampleSet
from featlens.seeds import derive
from featlens_trainers.config import to_mapping
from featlens_trainers.data import ImageData, LazyData, TensorData, load_data
from featlens_trainers.runs import Run, device_name
from featlens_trainers.sampler import latents
from featlens_trainers.settings import StudyConfig

__all__ = [
    "StudentSpec",
    "about",
    "data_of",
    "evaluation_images",
    "held_out_samples",
    "image_shape",
    "keep_samples",
    "look_at",
    "network_settings",
    "require_data",
    "training_data",
]

EXTRA = ("values", "holdout", "train_images")
"""Settings of the data that are recorded where they are set."""

Sampler = Callable[[Tensor, Tensor | None], Tensor]
"""From latents (B, C, H, W) and labels (B,) or None to images."""


@dataclass(frozen=True)
class StudentSpec:
    """One student of a study."""

    init: str
    ratio: str
    divergence: str
    seed: int

    @property
    def name(self) -> str:
        """Folder name: ``student-<init>-<ratio init>-<divergence or direction>-s<seed>``."""
        parts = (re.sub(r"[^\w.+=]", "_", part) for part in (self.init, self.ratio, self.divergence))
        return f"student-{'-'.join(parts)}-s{self.seed}"


def image_shape(config: StudyConfig) -> tuple[int, ...]:
    """(C, H, W) of the study's images."""
    return (config.network.in_channels, config.network.resolution, config.network.resolution)


def data_of(config: StudyConfig, split: str) -> TensorData | LazyData:
    """Images of the study's data set, ``"train"`` or ``"held-out"``, checked against the network."""
    count = config.train_images if split == "train" else None
    if split == "held-out" and config.data.startswith("shapes"):
        # There is no end to shapes: no more are drawn than are looked at.
        count = max(config.evaluation.reference, config.features.images or 0)
    data = load_data(config.data, split, count, config.seed, config.values, config.holdout)
    _require_fitting(data, config)
    return data


def require_data(config: StudyConfig) -> None:
    """Refuse data that is not there or does not fit the network, by a look at one image of it."""
    _require_fitting(look_at(config), config)


def look_at(config: StudyConfig) -> TensorData | LazyData:
    """One training image, which tells shape and classes."""
    return load_data(config.data, "train", 1, config.seed, config.values, config.holdout)


def _require_fitting(data: ImageData, config: StudyConfig) -> None:
    if tuple(data.shape) != image_shape(config):
        raise UsageError(
            f"{config.data} holds images of {_size(data.shape)}, the network is made for "
            f"{_size(image_shape(config))}; set network.resolution, in_channels and out_channels to fit"
        )
    labels = config.network.labels
    if labels and not data.num_labels:
        raise UsageError(
            f"the network is conditional (network.labels {labels}), but {config.data} has no labels; "
            "set network.labels to 0 or give labelled data"
        )
    if labels and data.num_labels > labels:
        raise UsageError(
            f"{config.data} has {data.num_labels} classes, network.labels is {labels}; raise it to that"
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def training_data(config: StudyConfig, device: torch.device | str) -> TensorData | LazyData:
    """Training images, on the device if they fit into memory."""
    return data_of(config, "train").to(device)


def held_out_samples(config: StudyConfig) -> SampleSet:
    """The held-out images as samples to extract features of, with their labels."""
    return SampleSet.load(
        config.data, _sampled(config), config.seed, "held-out", config.values, holdout=config.holdout
    )


def _sampled(config: StudyConfig) -> int | None:
    """Number of held-out images whose features are looked at; shapes need one."""
    if config.features.images is None and config.data.startswith("shapes"):
        return min(config.evaluation.reference, 2_000)
    return config.features.images


def evaluation_images(
    sampler: Sampler, config: StudyConfig, device: torch.device | str, count: int | None = None
) -> Tensor:
    """Images (N, C, H, W) on the CPU from the study's evaluation latents, the same for every model.

    A conditional model gets the classes in turn.
    """
    many = config.evaluation.images if count is None else count
    seed, labels = derive(config.seed, "evaluation"), config.network.labels
    out = []
    with torch.no_grad():
        for first in range(0, many, 250):
            here = min(250, many - first)
            z = latents(seed, first, here, image_shape(config)).to(device)
            label = torch.arange(first, first + here, device=device) % labels if labels else None
            out.append(sampler(z, label).float().cpu())
    return torch.cat(out)


def network_settings(config: StudyConfig) -> dict[str, Any]:
    """Settings that every network of a study depends on."""
    out: dict[str, Any] = {
        "data": config.data,
        "seed": config.seed,
        "sigma_data": config.sigma_data,
        "network": to_mapping(config.network),
    }
    return out | {key: getattr(config, key) for key in EXTRA if getattr(config, key) is not None}


def about(network: EDMDenoiser, run: Run) -> dict[str, Any]:
    """Facts about a finished network."""
    return {
        "weights_digest": weights_digest(network),
        "device": device_name(str(run.engine.device)),
        "running": run.engine.settings(),
    }


def keep_samples(run: Run, images: Tensor) -> None:
    """Store images (N, C, H, W) for the report."""
    if not run.engine.main:
        return
    buffer = io.BytesIO()
    np.save(buffer, images.numpy(), allow_pickle=False)
    write_bytes(run.folder / "samples.npy", buffer.getvalue())


def denoiser_of(network: torch.nn.Module) -> EDMDenoiser:
    """``network`` as what it is; the type checker does not know."""
    if not isinstance(network, EDMDenoiser):
        raise FeatlensError(f"expected a denoiser, got a {type(network).__name__}; this is a bug of featlens")
    return network
