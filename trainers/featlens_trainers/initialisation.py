"""Initialisations of student and ratio network: what each keeps of the teacher and what it removes.

| name | keeps | removes |
|---|---|---|
| teacher | map, features, parameter prior | nothing |
| features_only | the teacher's body | map: input and output convolution and noise embedding are drawn anew |
| single_sigma | a map at sigma_init | features across noise levels: trained at sigma_init alone |
| band_sigma | features of a band of noise levels | those of all other levels |
| map_regressed | the teacher's own map at sigma_init | the teacher's features and weights |
| map_regressed_ode | the end of the teacher's sampling paths | the teacher's features and weights |
| prior_only | each tensor's values, permuted within it | features and map |
| moments, spectrum | each tensor's mean and spread, or its singular values | features and map |
| encoder_only, decoder_only, resolution:R, depth:D, block:B, type:T | that part of the teacher | the rest |
| classifier_body | features learnt from labels | features of denoising |
| random | nothing | everything |
| random_no_zero | nothing | everything, and layers that start near zero |

Each is a list of rules (:class:`featlens.weights.Rule`); so is what a user adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from featlens import weights
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.seeds import derive
from featlens.weights import Manifest
from featlens.weights.rules import bare, sources_of
from featlens_trainers.networks import build_denoiser
from featlens_trainers.settings import InitSpec, StudyConfig
from featlens_trainers.settings.initialisation import TRAINED
from featlens_trainers.training import seeded

__all__ = [
    "build_denoiser",
    "initialise_ratio",
    "initialise_student",
    "load_source",
    "seeded",
    "student_seed",
]

Weights = Mapping[str, Tensor]


def student_seed(config: StudyConfig, seed: int) -> int:
    """Seed of a student's random weights, data order and noise.

    Students of one seed share them: differences between initialisations are paired within a seed.
    """
    return derive(config.seed, "student", seed)


def initialise_student(
    student: EDMDenoiser, spec: InitSpec, sources: Mapping[str, Weights], seed: int
) -> Manifest:
    """Set the weights of a randomly initialised ``student`` in place; returns where each tensor came from.

    Parameters
    ----------
    student
        From :func:`build_denoiser` with the student's own seed.
    spec
        Which initialisation.
    sources
        State dicts under the names and paths of ``spec.sources()``. A trained network such as ``"teacher"``
        has to be of the student's architecture; of what a path leads to only the tensors that are taken.
    seed
        Seed of permutations and other recipes; each tensor has a stream of its own.
    """
    rules = spec.student_rules()
    own = student.state_dict()
    for name in sorted(sources_of(rules)):
        if name in TRAINED and name in sources:
            _require_same_architecture(sources[name], name, own)
    return weights.apply(student, rules, sources, seed)


def initialise_ratio(
    ratio: nn.Module, spec: InitSpec, sources: Mapping[str, Weights], seed: int = 0
) -> Manifest:
    """Set the body of a ratio network in place as the spec says; returns where each tensor came from.

    The body has the names of the teacher's tensors, without or with what wraps them: an encoder, or the
    denoiser of a ratio network that is a head on the fake score. The head is random.
    """
    # What a named initialisation draws anew need not be there: an encoder has no output layers.
    rules = [
        rule
        for rule in spec.all_ratio_rules()
        if rule.take != "random" or rule in spec.ratio_rules or _matches(ratio, rule.match)
    ]
    own = ratio.state_dict()
    needed = sources_of(rules)
    if "teacher" in needed and "teacher" not in sources:
        raise FeatlensError(
            "the ratio network is to start from the teacher's encoder, but no teacher was given; train it "
            "first, or start the ratio network from 'random'"
        )
    for name in sorted(needed & set(sources)):
        _require_same_width(sources[name], name, own)
    return weights.apply(ratio, rules, sources, seed)


def _matches(module: nn.Module, match: str) -> bool:
    try:
        return bool(weights.select(module, match))
    except UsageError:
        return False


def _require_same_architecture(source: Weights, name: str, own: Weights) -> None:
    wrong = [key for key in own if key not in source or source[key].shape != own[key].shape]
    wrong += [key for key in source if key not in own]
    if wrong:
        raise FeatlensError(
            f"the weights of {name!r} are of another architecture: {len(wrong)} tensors differ, "
            f"first {wrong[0]!r}; train teacher and student with the same network settings"
        )


def _require_same_width(source: Weights, name: str, own: Weights) -> None:
    """Refuse a source for a ratio network that has the same tensors, but narrower or wider."""
    there = {bare(key): tensor for key, tensor in source.items()}
    both = [(key, there[bare(key)].shape, tensor.shape) for key, tensor in own.items() if bare(key) in there]
    wrong = [(key, a, b) for key, a, b in both if a != b]
    if wrong and 2 * len(wrong) > len(both):
        key, a, b = wrong[0]
        raise FeatlensError(
            f"a ratio network of another width cannot start from {name!r}, which is of another architecture: "
            f"{key!r} is {tuple(a)} there and {tuple(b)} here; start the light one from "
            "'random', or give it width 1"
        )


def load_source(path: str) -> dict[str, Tensor]:
    """Tensors of a snapshot, or of the newest snapshot of a run, to be a source under its path.

    The names of ``spec.sources()`` that are not trained networks of the study are such paths.
    """
    from featlens_trainers.runs import newest_snapshot
    from featlens_trainers.snapshots import read_tensors

    place = Path(path)
    if place.is_dir():
        place = newest_snapshot(place)
    elif not place.is_file():
        raise FeatlensError(
            f"no source {path!r}: expected the folder of a run, a snapshot's file, or the name of a trained "
            f"network; {choices_hint(path, TRAINED)}"
        )
    return read_tensors(place)[0]
