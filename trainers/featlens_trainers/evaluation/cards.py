"""Cards: what was measured, on which images and with which features, so that numbers can be compared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from featlens.errors import FeatlensError, UsageError
from featlens.files import make_folder, write_text
from featlens_trainers.evaluation.measurement import METRICS

__all__ = ["Card", "Difference", "load_cards", "save_cards"]

FORMAT = "featlens.card"
MANY = "featlens.cards"
VERSION = 1


@dataclass(frozen=True)
class Difference:
    """One metric of one card minus that of another, with its standard error (NaN where there is none).

    ``paired`` says whether the error takes into account what both cards share: the same rows of the same
    reference images were left out in each draw.
    """

    metric: str
    value: float
    other: float
    difference: float
    error: float
    paired: bool


@dataclass(frozen=True)
class Card:
    """Everything that a quality number rests on.

    Attributes
    ----------
    run
        What was evaluated, as the user wrote it.
    generated, reference
        Numbers of images.
    seed
        Seed of latents and labels, None for images that were given.
    steps, network_evaluations
        Heun steps (1: the one-step map) and evaluations of the network an image, all candidates included.
    sigma_init
        Noise level of the one-step map.
    best_of, best_of_sigmas
        Candidates an image, and the noise levels at which the ratio network chose.
    label
        The one class that was drawn, None for all.
    weights
        Digest of the model's weights; of the pixels for images that were given.
    extractor, reference_images
        ``name`` and ``digest`` of each; ``features`` is the number of features.
    settings
        Of the metrics: neighbours, blocks, draws.
    values, errors, draws
        As in :class:`~featlens_trainers.evaluation.measurement.Measurement`.
    warnings, versions
        What to beware of; versions of packages.
    """

    run: str
    generated: int
    reference: int
    seed: int | None
    steps: int | None
    network_evaluations: int | None
    sigma_init: float | None
    best_of: int
    best_of_sigmas: tuple[float, ...]
    label: int | None
    weights: str
    extractor: Mapping[str, Any]
    reference_images: Mapping[str, Any]
    settings: Mapping[str, Any]
    values: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    draws: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the metrics stand at the top, beside what they rest on."""
        held = {key: value for key, value in asdict(self).items() if key != "values"}
        for name in ("extractor", "reference_images", "settings", "errors", "versions"):
            held[name] = dict(held[name])
        held["draws"] = {name: list(values) for name, values in self.draws.items()}
        held |= {name: list(held[name]) for name in ("best_of_sigmas", "warnings")}
        return {"format": FORMAT, "version": VERSION, **self.values, **held}

    @classmethod
    def from_dict(cls, data: Any, where: str = "the card") -> Card:
        """A card from plain data; what is wrong with it in one line."""
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            kind = data.get("format") if isinstance(data, Mapping) else None
            hint = "it holds several; give one with --best-of K" if kind == MANY else "write one with -o"
            raise FeatlensError(f"{where} is no card of featlens evaluate; {hint}")
        if data.get("version") != VERSION:
            raise FeatlensError(
                f"{where} has version {data.get('version')}, this featlens reads {VERSION}; "
                "evaluate again, or update featlens"
            )
        names = [entry.name for entry in fields(cls) if entry.name != "values"]
        missing = [name for name in (*names, *METRICS) if name not in data]
        if missing:
            raise FeatlensError(f"{where} is incomplete: no {missing[0]!r}; evaluate again")
        try:
            return cls._checked(data, names)
        except (TypeError, ValueError, AttributeError) as error:
            said = " ".join(str(error).split())[:120]
            raise FeatlensError(f"{where} is damaged ({said}); evaluate again") from None

    @classmethod
    def _checked(cls, data: Mapping[str, Any], names: Sequence[str]) -> Card:
        known = {*names, "format", "version"}
        values = {key: float(value) for key, value in data.items() if key not in known}
        held = {name: data[name] for name in names}
        for name in ("generated", "reference", "best_of"):
            if isinstance(held[name], bool) or not isinstance(held[name], int):
                raise TypeError(f"{name} is {held[name]!r}, expected a whole number")
        held["errors"] = {key: float(value) for key, value in held["errors"].items()}
        held["draws"] = {key: tuple(map(float, found)) for key, found in held["draws"].items()}
        for name in ("extractor", "reference_images"):
            if not isinstance(held[name].get("digest"), str):
                raise TypeError(f"{name} has no digest")
        held["settings"] = dict(held["settings"])
        held |= {name: tuple(held[name]) for name in ("best_of_sigmas", "warnings")}
        return cls(values=values, **held)

    def differences(self, other: Card) -> list[Difference]:
        """What this card's metrics are above those of another.

        Raises
        ------
        UsageError
            The cards differ in numbers of images, features, reference images or the settings of the metrics,
            so that their numbers cannot be compared; names all that differs.
        """
        self._require_comparable(other)
        out = []
        for name, value in self.values.items():
            if name not in other.values:
                continue
            mine, theirs = self.draws.get(name, ()), other.draws.get(name, ())
            paired = bool(mine) and len(mine) == len(theirs) and self._same_draws(other)
            if paired:
                error = float(np.std(np.subtract(mine, theirs), ddof=1))
            else:
                error = math.hypot(self.errors.get(name, math.nan), other.errors.get(name, math.nan))
            theirs_value = other.values[name]
            out.append(Difference(name, value, theirs_value, value - theirs_value, error, paired))
        return out

    def _same_draws(self, other: Card) -> bool:
        return all(self.settings.get(key) == other.settings.get(key) for key in ("resamples", "seed"))

    def _require_comparable(self, other: Card) -> None:
        lines = []
        for name in ("generated", "reference"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                lines.append(f"n of {name} images ({mine:,} here, {theirs:,} there)")
        for name, what in (("extractor", "extractor"), ("reference_images", "reference images")):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine["digest"] != theirs["digest"]:
                lines.append(f"{what} ({_named(mine)} here, {_named(theirs)} there)")
        for key in ("k_precision", "k_coverage", "kid_block"):
            mine, theirs = self.settings.get(key), other.settings.get(key)
            if mine != theirs:
                lines.append(f"{key} ({mine} here, {theirs} there)")
        if lines:
            raise UsageError(
                f"{self.run} and {other.run} cannot be compared: they differ in {'; '.join(lines)}; "
                "evaluate both alike"
            )


def _named(thing: Mapping[str, Any]) -> str:
    return f"{thing.get('name', 'unnamed')} {thing['digest']}"


def save_cards(path: os.PathLike[str] | str, cards: Sequence[Card]) -> None:
    """Write one card, or several as one file, atomically."""
    make_folder(Path(path).parent)
    write_text(path, cards_text(cards) + "\n")


def cards_text(cards: Sequence[Card]) -> str:
    """JSON of one card, or of several."""
    if len(cards) == 1:
        return json.dumps(cards[0].to_dict(), allow_nan=False)
    held = {"format": MANY, "version": VERSION, "cards": [card.to_dict() for card in cards]}
    return json.dumps(held, allow_nan=False)


def load_cards(path: os.PathLike[str] | str) -> list[Card]:
    """The cards of a file of :func:`save_cards`; a wrong or damaged file is one clear line."""
    where = Path(path)
    try:
        data = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no card at {where}; write one with featlens evaluate RUN -o {where}") from None
    except (OSError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:100]
        raise FeatlensError(f"{where} is no card of featlens evaluate ({said}); write one with -o") from None
    if isinstance(data, Mapping) and data.get("format") == MANY and isinstance(data.get("cards"), list):
        if not data["cards"]:
            raise FeatlensError(f"{where} is damaged (no card in it); evaluate again")
        return [Card.from_dict(entry, str(where)) for entry in data["cards"]]
    return [Card.from_dict(data, str(where))]
