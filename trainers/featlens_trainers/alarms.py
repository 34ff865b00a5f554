"""Alarms: a distillation that collapses or saturates is stopped with advice instead of running to its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from featlens_trainers.diagnostics import Diagnosis
from featlens_trainers.training import TrainingError

__all__ = ["Alarms"]

_log = logging.getLogger(__name__)

COLLAPSED = 0.05
"""Diversity, as a share of the data's, below which a student counts as collapsed."""

FALLEN = 0.3
"""... if it has fallen below this share of its own best: a random start did not collapse."""

TOLD_APART = 0.999
"""Mean AUC over the noise levels that the generator meets, from which on a ratio network is sure of all."""

VANISHED = 1e-3
"""... and the pull, as a share of the largest seen, below which it gives no direction any more."""

IN_A_ROW = 2
"""Evaluations in a row that must agree."""


class Alarms:
    """Looks at one diagnosis after the other; what it remembers lies in ``notes``, saved with the state.

    Parameters
    ----------
    notes
        A dictionary that is saved and restored with the training, such as ``Training.notes``.
    mode
        ``"stop"``, ``"warn"`` or ``"off"``.
    """

    def __init__(self, notes: dict[str, Any], mode: str = "stop") -> None:
        self._notes, self._mode = notes, mode

    def hear(self, diagnosis: Diagnosis, shares: Sequence[float] | None = None) -> None:
        """Take note of a diagnosis.

        Parameters
        ----------
        diagnosis
            At this moment.
        shares
            How much each noise level counts for saturation: how often the generator meets it (equal if None).

        Raises
        ------
        TrainingError
            In the mode ``"stop"``, if the student has collapsed or the ratio network has saturated.
        """
        if self._mode == "off":
            return
        nothing = {"diversity": 0.0, "pull": 0.0, "collapse": 0, "saturation": 0}
        memory = self._notes.setdefault("alarms", nothing)
        weights = [1.0] * len(diagnosis.bins) if shares is None else list(shares)
        pull = _mean([entry.pull for entry in diagnosis.bins], weights)
        memory["diversity"] = max(memory["diversity"], _number(diagnosis.diversity))
        memory["pull"] = max(memory["pull"], pull)
        collapsed = (
            diagnosis.diversity < COLLAPSED and diagnosis.diversity < FALLEN * memory["diversity"]
        ) or not math.isfinite(diagnosis.diversity)
        told_apart = _mean([entry.auc for entry in diagnosis.bins], weights)
        saturated = told_apart > TOLD_APART and pull < VANISHED * memory["pull"]
        self._count("collapse", collapsed, _COLLAPSE.format(diagnosis.diversity, diagnosis.images))
        self._count("saturation", saturated, _SATURATION.format(diagnosis.images))

    def _count(self, name: str, seen: bool, message: str) -> None:
        memory = self._notes["alarms"]
        memory[name] = memory[name] + 1 if seen else 0
        if memory[name] < IN_A_ROW:
            return
        if self._mode == "warn":
            _log.warning("%s", message)
            return
        raise TrainingError(
            f"{message}; the last saved state is kept; to go on all the same set diagnostics.alarms=warn"
        )


_COLLAPSE = (
    "the student has collapsed: its images differ {:.3f} times as much as the data's after {:,} images; "
    "lower distill.lr, raise distill.ratio_lr or distill.critic_updates, or lengthen distill.warmup"
)

_SATURATION = (
    "the ratio network tells all images apart at the noise levels that count and gives no direction any "
    "more after {:,} images; use a divergence that does not saturate (reverse_kl, softened_reverse_kl), "
    "lower distill.ratio_lr, or raise sigma in distill.noise"
)


def _number(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Weighted mean of those values that are numbers, 0 if there are none."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if math.isfinite(value)]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else 0.0
