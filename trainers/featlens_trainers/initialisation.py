"""Initialisations of student and ratio network: what each keeps of the teacher and what it removes.

| name | keeps | removes |
|---|---|---|
| teacher | map, features, parameter prior | nothing |
| features_only | the teacher's body | map: input and output convolution and noise embedding are drawn anew |
| single_sigma | a map at sigma_init | features across noise levels: trained at sigma_init alone |
| map_regressed | the teacher's own map at sigma_init | the teacher's features and weights |
| prior_only | each tensor's values, permuted within it | features and map |
| random | nothing | everything |
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError
from featlens.seeds import derive
from featlens_trainers.networks import RatioNetwork, UNet, UNetConfig
from featlens_trainers.settings import InitSpec, StudyConfig
from featlens_trainers.training import seeded, stream

__all__ = ["build_denoiser", "initialise_ratio", "initialise_student", "seeded", "student_seed"]

MAP_TENSORS = re.compile(
    r"network\.(enc\.\d+x\d+_conv|dec\.\d+x\d+_aux_conv|map_(layer0|layer1|label|augment))\."
)
"""Tensors that tie a body to one noise-to-image map: input and output convolution, noise embedding."""

HEAD = ("head_norm.", "head.")
"""Tensors of a ratio network that no teacher has."""


def build_denoiser(config: UNetConfig, sigma_data: float, seed: int) -> EDMDenoiser:
    """Randomly initialised denoiser; the weights depend on ``seed`` alone."""
    with seeded(seed, "network"):
        network = UNet(config)
    shape = (config.in_channels, config.resolution, config.resolution)
    return EDMDenoiser(network, shape, config.labels, sigma_data)


def student_seed(config: StudyConfig, seed: int) -> int:
    """Seed of a student's random weights, data order and noise.

    Students of one seed share them: differences between initialisations are paired within a seed.
    """
    return derive(config.seed, "student", seed)


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
            out[name], origin[name] = (
                _permuted(source[name], stream(seed, "permute", name)),
                "teacher, permuted",
            )
        else:
            out[name], origin[name] = source[name], source_name
    student.load_state_dict(out)
    return origin


def initialise_ratio(
    ratio: RatioNetwork, spec: InitSpec, sources: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, str]:
    """Set encoder and noise embedding of ``ratio`` in place as the spec says; returns tensors' origins."""
    own = ratio.state_dict()
    if spec.ratio == "random":
        return dict.fromkeys(own, "random")
    teacher = sources.get("teacher")
    if teacher is None:
        raise FeatlensError(
            "the ratio network is to start from the teacher's encoder, but no teacher was given"
        )
    body = {name: tensor for name, tensor in own.items() if not name.startswith(HEAD)}
    inherited = {name: teacher[f"network.{name}"] for name in body if f"network.{name}" in teacher}
    _require_same_architecture(inherited, "teacher", body)
    ratio.load_state_dict({**own, **inherited})
    return {name: "teacher" if name in inherited else "random" for name in own}


def _matching(
    sources: Mapping[str, Mapping[str, Tensor]], name: str, own: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    if name not in sources:
        raise FeatlensError(
            f"initialisation needs the weights of {name!r}, which were not given; train it first"
        )
    _require_same_architecture(sources[name], name, own)
    return sources[name]


def _require_same_architecture(source: Mapping[str, Tensor], name: str, own: Mapping[str, Tensor]) -> None:
    wrong = [key for key in own if key not in source or source[key].shape != own[key].shape]
    wrong += [key for key in source if key not in own]
    if wrong:
        raise FeatlensError(
            f"the weights of {name!r} are of another architecture: {len(wrong)} tensors differ, "
            f"first {wrong[0]!r}; train teacher and student with the same network settings"
        )


def _permuted(tensor: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)
