"""Sentences of the report: the question, what came out, and how much weight it can bear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from featlens_trainers.settings import StudyConfig

__all__ = ["kept_and_removed", "question", "short_name", "what_came_out"]

KEEPS = {
    "teacher": ("map, features, parameter prior", "nothing"),
    "features_only": (
        "the body's weights",
        "the map: input and output convolution and noise embedding are drawn anew",
    ),
    "single_sigma": ("a map at sigma_init (own training, same images seen)", "features across noise levels"),
    "map_regressed": ("the teacher's one-step map", "the teacher's features and weights"),
    "prior_only": ("each tensor's values, in permuted order", "features and map"),
    "random": ("nothing", "everything"),
}
"""What each initialisation of the demo keeps and removes."""


def kept_and_removed(init: str, config: StudyConfig) -> tuple[str, str]:
    """What an initialisation keeps of the teacher, and what it removes, in words."""
    if init in KEEPS:
        return KEEPS[init]
    rules = config.initialisation(init, config.ratio_inits[0]).student_rules()
    return "; ".join(f"{rule.match}: {rule.take}" for rule in rules), "the rest is drawn anew"


def question(config: StudyConfig) -> str:
    """The lead of the report."""
    return (
        f"One-step students on {config.data}, distilled without the teacher's score. They differ in where "
        "their weights start; what each start keeps of the teacher tells map, features and parameter "
        "prior apart."
    )


def short_name(student: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Name with only those factors that vary in the study."""
    out = [str(student["init"])]
    for key, label in (("ratio", "ratio net {}"), ("divergence", "{}"), ("seed", "seed {}")):
        if len({entry[key] for entry in results["students"]}) > 1:
            out.append(label.format(student[key]))
    return ", ".join(out)


def what_came_out(config: StudyConfig, results: Mapping[str, Any]) -> list[str]:
    """Plain statements of the outcome and of its limits; no verdict is drawn from one seed."""
    out = []
    for ratio in config.ratio_inits:
        for divergence in config.divergences:
            rows = [
                row for row in results["summary"] if row["ratio"] == ratio and row["divergence"] == divergence
            ]
            if rows:
                out.append(_order(rows, ratio, divergence))
    moving = _still_improving(results)
    if moving:
        out.append(
            "Still improving when the run ended (the last distance is a tenth below all before): "
            f"{', '.join(moving)}. Longer runs may order these differently."
        )
    seeds = len(config.seeds)
    if seeds == 1:
        out.append(
            "One seed: differences between students include chance of unknown size, so this page supports "
            "no verdict. Run with --full, or with --seeds 0,1,2, to see the spread."
        )
    else:
        out.append(
            f"{seeds} seeds: ranges are smallest and largest value over seeds, not confidence intervals. All "
            "seeds share one teacher, one set of controls and one classifier, whose own chance is left out."
        )
    if config.ratio_inits == ("random",):
        out.append(
            "The ratio network always starts from random weights here, so that no teacher feature can "
            "enter through it and the student's own start is the only difference."
        )
    return out


def _still_improving(results: Mapping[str, Any]) -> list[str]:
    """Initialisations of which more than half of the students were still improving at the end."""
    votes: dict[str, list[bool]] = {}
    for student in results["students"]:
        if student["status"] == "done" and len(student["curve"]) > 2:
            *before, last = (point["frechet"] for point in student["curve"])
            votes.setdefault(student["init"], []).append(last < 0.9 * min(before))
    return [init for init, found in votes.items() if sum(found) > len(found) / 2]


def _order(rows: list[Mapping[str, Any]], ratio: str, divergence: str) -> str:
    ranked = sorted(rows, key=lambda row: float(np.mean(row["frechet"])))
    said = ", ".join(f"{row['init']} {np.mean(row['frechet']):.3f}" for row in ranked)
    return f"Final Frechet distance, smaller is better ({divergence}, ratio network from {ratio}): {said}."
