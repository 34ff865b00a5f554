"""Where the tensors of a student and of its ratio network come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint
from featlens.weights.rules import Rule, sources_of
from featlens_trainers.settings.checks import positive

__all__ = [
    "INITIALISATIONS",
    "RATIO_INITIALISATIONS",
    "STUDY_INITIALISATIONS",
    "TRAINED",
    "BodyConfig",
    "InitSpec",
    "NamedInit",
    "parse_init",
    "rules_of",
]

_ALL = "**"

_RULES: dict[str, tuple[Rule, ...]] = {
    "teacher": (Rule(_ALL, "teacher"),),
    "features_only": (
        Rule(_ALL, "teacher"),
        Rule("role:in", "random"),
        Rule("role:out+!norm", "random"),
        Rule("role:noise_embedding", "random"),
    ),
    "single_sigma": (Rule(_ALL, "copy", source="single_sigma"),),
    "map_regressed": (Rule(_ALL, "copy", source="map_regressed"),),
    "prior_only": (Rule(_ALL, "permuted"),),
    "random": (),
    "random_no_zero": (Rule(_ALL, "no_zero"),),
    "moments": (Rule(_ALL, "moments"),),
    "spectrum": (Rule(_ALL, "spectrum"),),
    "band_sigma": (Rule(_ALL, "copy", source="band_sigma"),),
    "map_regressed_ode": (Rule(_ALL, "copy", source="map_regressed_ode"),),
    "encoder_only": (Rule("role:encoder", "teacher"), Rule("role:noise_embedding", "teacher")),
    "decoder_only": (Rule("role:decoder", "teacher"),),
    "classifier_body": (Rule(_ALL, "copy", source="classifier_body"), Rule("role:out", "random")),
}

INITIALISATIONS = tuple(_RULES)
"""Initialisations with a name of their own; :func:`parse_init` tells of those with a number."""

STUDY_INITIALISATIONS = INITIALISATIONS[:6]
"""Those of the study of digits."""

RATIO_INITIALISATIONS = ("teacher", "random")
"""Starts of the ratio network that studies cross with the student's."""

TRAINED = ("teacher", "single_sigma", "band_sigma", "map_regressed", "map_regressed_ode", "classifier_body")
"""Sources that are trained networks of the student's own architecture."""

_WITH_VALUE = {
    "resolution": "role:resolution={}",
    "depth": "role:depth={}",
    "block": "role:block={}",
    "type": "role:{}",
}
_LAYER_TYPES = ("conv", "norm", "attention", "embedding", "linear")


def rules_of(name: str, what: str = "initialisation") -> tuple[Rule, ...]:
    """Rules that a named initialisation stands for.

    Besides :data:`INITIALISATIONS`: ``resolution:16``, ``depth:0`` (first third of the blocks; 1 and 2),
    ``block:3`` and ``type:conv`` (norm, attention, embedding, linear) take the teacher's tensors of that role
    and leave the rest random.

    >>> rules_of("resolution:16")
    (Rule(match='role:resolution=16', take='teacher', amount=None, source=None),)
    """
    if name in _RULES:
        return _RULES[name]
    key, colon, value = name.partition(":")
    if colon and key in _WITH_VALUE:
        valid = value in _LAYER_TYPES if key == "type" else bool(re.fullmatch(r"\d{1,6}", value))
        if not valid:
            expected = choices_hint(value, _LAYER_TYPES) if key == "type" else "expected a whole number"
            raise UsageError(f"{what} {name!r}: {expected}")
        return (Rule(_WITH_VALUE[key].format(value), "teacher"),)
    known = [*_RULES, *(f"{key}:" for key in _WITH_VALUE)]
    raise UsageError(f"unknown {what} {name!r}: {choices_hint(name, known, most=20)}")


@dataclass(frozen=True)
class InitSpec:
    """Where a student's tensors and its ratio network's tensors come from before distillation.

    Attributes
    ----------
    student, ratio
        Name of an initialisation: one of :data:`INITIALISATIONS`, or one with a value such as
        ``resolution:16``, ``depth:0`` or ``type:conv``. The ratio network's head is always random.
    rules, ratio_rules
        Changes to it, in order; of all rules that match a tensor the last counts. What no rule names stays as
        it was drawn (start from ``"teacher"`` for the opposite).

    Examples
    --------
    >>> norms = InitSpec("random", rules=(Rule("role:decoder+norm", "teacher"),))
    >>> sorted(norms.sources()), sorted(InitSpec("single_sigma", "teacher").sources())
    (['teacher'], ['single_sigma', 'teacher'])
    """

    student: str = "teacher"
    ratio: str = "random"
    rules: tuple[Rule, ...] = ()
    ratio_rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        rules_of(self.student)
        rules_of(self.ratio, "ratio-network initialisation")

    def student_rules(self) -> tuple[Rule, ...]:
        """All rules of the student, in order."""
        return (*rules_of(self.student), *self.rules)

    def all_ratio_rules(self) -> tuple[Rule, ...]:
        """All rules of the ratio network, in order."""
        named = rules_of(self.ratio)
        # No teacher has a head; but what was drawn for it may be asked to be of the usual size.
        head = () if self.ratio in ("random", "random_no_zero") else (Rule("role:head", "random"),)
        return (*named, *head, *self.ratio_rules)

    def sources(self) -> frozenset[str]:
        """Trained networks that are needed: names among :data:`TRAINED`, and paths."""
        return sources_of(self.student_rules()) | sources_of(self.all_ratio_rules())


@dataclass(frozen=True)
class NamedInit:
    """An initialisation of one's own, to be named in a list of initialisations.

    Attributes
    ----------
    name
        Lower-case letters, digits and underscores; not a name that is taken.
    rules
        What it changes, in order; the last that matches a tensor counts.
    base
        The initialisation that it changes: ``"random"``, or ``"teacher"`` for what no rule names.
    """

    name: str
    rules: tuple[Rule, ...] = ()
    base: str = "random"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise UsageError(
                f"initialisation {self.name!r}: expected a name of lower-case letters, digits and underscores"
            )
        if self.name in _RULES:
            raise UsageError(f"initialisation {self.name!r} exists already; give yours another name")
        if not self.rules:
            raise UsageError(
                f"initialisation {self.name!r} has no rules; give it one, or use {self.base!r} itself"
            )
        rules_of(self.base)


def parse_init(name: str, custom: Sequence[NamedInit] = (), ratio: str = "random") -> InitSpec:
    """Initialisation of a student by its name, and of its ratio network by ``ratio``.

    Names of ``custom`` count beside those of :func:`rules_of`, for both.

    >>> parse_init("mine", [NamedInit("mine", (Rule("role:norm", "teacher"),))]).student
    'random'
    """
    own = {entry.name: entry for entry in custom}
    if len(own) != len(custom):
        twice = next(entry.name for entry in custom if sum(entry.name == other.name for other in custom) > 1)
        raise UsageError(f"two initialisations are called {twice!r}; rename one")
    for asked, what in ((name, "initialisation"), (ratio, "ratio-network initialisation")):
        if asked not in own:
            try:
                rules_of(asked, what)
            except UsageError:
                if ":" in asked or not own:
                    raise
                hint = choices_hint(asked, [*own, *_RULES], most=20)
                raise UsageError(f"unknown {what} {asked!r}: {hint}") from None
    student, critic = own.get(name), own.get(ratio)
    return InitSpec(
        student=student.base if student else name,
        ratio=critic.base if critic else ratio,
        rules=student.rules if student else (),
        ratio_rules=critic.rules if critic else (),
    )


@dataclass(frozen=True)
class BodyConfig:
    """Training of the body for ``classifier_body``: labels, no denoising.

    Attributes
    ----------
    images, batch, lr, ramp_images
        Length in images, and the learning rate with its linear rise; it falls along a half cosine.
    sigma
        Noise level that the network is told, and by which its input is scaled. Small: the images are clean.
    noised
        Whether noise of that level is added to the images.
    ema_half_life, ema_ramp
        Of the average that serves as source, as in ``TeacherConfig``.
    """

    images: int = 51_200
    batch: int = 64
    lr: float = 2e-3
    ramp_images: int = 6_400
    sigma: float = 0.05
    noised: bool = False
    ema_half_life: int = 8_000
    ema_ramp: float = 0.05

    def __post_init__(self) -> None:
        positive(self, "images", "batch", "lr", "sigma", "ema_half_life", "ema_ramp")
        if self.ramp_images < 0:
            raise UsageError(f"configuration: ramp_images must be at least 0, got {self.ramp_images}")
