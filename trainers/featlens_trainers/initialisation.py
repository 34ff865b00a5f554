"""Initialisations of student and ratio network: what each keeps of the teacher and what it removes.

| name | keeps | removes |
|---|---|---|
| teacher | map, features, parameter prior | nothing |
| features_only | the teacher's body | map: input and output convolution and noise embedding are drawn anew |
| single_sigma | a map at sigma_init | features across noise levels: trained at sigma_init alone, same images |
| map_regressed | the teacher's own map at sigma_init | the teacher's features and weights |
| prior_only | each tensor's values, permuted within it | features and map |
| random | nothing | everything |
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError
from featlens.seeds import derive
from featlens_trainers.networks import RatioNetwork, UNet, UNetConfig
from featlens_trainers.presets import InitSpec
from featlens_trainers.training import stream

__all__ = ["build_denoiser", "initialise_ratio", "initialise_student", "seeded"]

MAP_TENSORS = re.compile(r"network\.(enc\.\d+x\d+_conv|dec\.\d+x\d+_aux_conv|map_(layer0|layer1|label|augment))\.")
"""Tensors that tie a body to one noise-to-image map: input and output convolution, noise embedding."""


@contextlib.contextmanager
def seeded(seed: int, *names: int | str) -> Iterator[None]:
    """Context in which torch's global generator is seeded, and is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        yield


def build_denoiser(config: UNetConfig, sigma_data: float, seed: int) -> EDMDenoiser:
    """Randomly initialised denoiser; the weights depend on ``seed`` alone."""
    with seeded(seed, "network"):
        network = UNet(config)
    shape = (config.in_channels, config.resolution, config.resolution)
    return EDMDenoiser(network, shape, config.labels, sigma_data)


def initialise_student(
    student: EDMDenoiser, spec: InitSpec, sources: Mapping[str, Mapping[str, Tensor]], seed: int
) -> dict[str, str]:
    """Set the weights of a randomly initialised ``student`` in place; returns each tensor's origin.

    Parameters
    ----------
    student
        From :func:`build_denoiser` with the student's own seed.
    spec
        Which initialisation.
    sources
        State dicts by name: ``"teacher"``, and ``"single_sigma"`` or ``"map_regressed"`` where asked for.
    seed
        Seed of the permutations.
    """
    own = student.state_dict()
    if spec.student == "random":
        return dict.fromkeys(own, "random")
    source_name = spec.student if spec.student in ("single_sigma", "map_regressed") else "teacher"
    source = _matching(sources, source_name, own)
    out: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in own.items():
        if spec.student == "features_only" and MAP_TENSORS.match(name):
            out[name], origin[name] = tensor, "random"
        elif spec.student == "prior_only":
            out[name], origin[name] = _permuted(source[name], stream(seed, "permute", name)), "teacher, permuted"
        else:
            out[name], origin[name] = source[name], source_name
    student.load_state_dict(out)
    return origin


def initialise_ratio(
    ratio: RatioNetwork, spec: InitSpec, sources: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, str]:
    """Set encoder and noise embedding of ``ratio`` in place where the spec says so; returns each tensor's origin."""
    own = ratio.state_dict()
    if spec.ratio == "random":
        return dict.fromkeys(own, "random")
    teacher = sources.get("teacher")
    if teacher is None:
        raise FeatlensError("the ratio network is to start from the teacher's encoder, but no teacher was given")
    out: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in own.items():
        inherited = teacher.get(f"network.{name}")
        out[name] = tensor if inherited is None else inherited
        origin[name] = "random" if inherited is None else "teacher"
    ratio.load_state_dict(out)
    return origin


def _matching(
    sources: Mapping[str, Mapping[str, Tensor]], name: str, own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    if name not in sources:
        raise FeatlensError(f"initialisation needs the weights of {name!r}, which were not given; train it first")
    source = sources[name]
    wrong = [key for key in own if key not in source or source[key].shape != own[key].shape]
    wrong += [key for key in source if key not in own]
    if wrong:
        raise FeatlensError(
            f"the weights of {name!r} are of another architecture: {len(wrong)} tensors differ, first {wrong[0]!r}; "
            "train teacher and student with the same network settings"
        )
    return source


def _permuted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)
