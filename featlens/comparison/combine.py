"""Two comparisons of the same samples: both in one, or the difference of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.choose import named
from featlens.comparison.panel import QUANTITIES, Panel
from featlens.comparison.result import Comparison
from featlens.errors import UsageError

__all__ = ["DIFFERENCE", "difference", "join"]

DIFFERENCE = "difference of "
"""How the measure of a difference begins."""
DESCRIPTIVE = ("sample_set", "split", "file")
"""Words about samples that may differ where the samples are the same."""
UNKNOWN = (
    "nothing says that both comparisons are of the same samples (plain arrays carry no digest of them); "
    "their number is the same"
)
RULE = (
    "from the lower end of the first minus the upper end of the second, to the upper minus the lower: half "
    "widths are added, because both values come from the same samples and depend on each other in an unknown "
    "way; wide enough for estimates with normal errors however they depend on each other, and in general, by "
    "Bonferroni's inequality, wrong at most as often as both intervals together"
)


def join(one: Comparison, other: Comparison) -> Comparison:
    """All panels of both.

    Parameters
    ----------
    one, other
        Comparisons of the same samples, noise and levels, with intervals of the same confidence; no measure
        of a pair may be in both, and a model's name must stand for the same features in both.

    Returns
    -------
    Comparison
        Panels of the first, then those of the second. ``provenance["joined"]`` keeps what the provenances
        say differently.

    Raises
    ------
    UsageError
        If the two do not fit together; says why.

    Examples
    --------
    >>> import numpy as np
    >>> from featlens import compare
    >>> x, y = np.random.default_rng(0).normal(size=(2, 80, 5))
    >>> arrays = {"a": {"enc": x}, "b": {"enc": y}}
    >>> both = compare(arrays, permutations=0).join(compare(arrays, "cka(estimator=biased)", permutations=0))
    >>> both.measures
    ('cka', "cka(estimator='biased')")
    """
    remarks = _same_samples(one, other, "join")
    for panel in other.panels:
        if any((panel.measure, panel.a, panel.b) == (p.measure, p.a, p.b) for p in one.panels):
            raise UsageError(
                f"join: expected each measure of a pair in one of the two, {named(panel)} is in both; "
                "leave it out of one with .select(...)"
            )
    models = dict(one.provenance.get("models", {}))
    for name, told in other.provenance.get("models", {}).items():
        if name in models and _origin(models[name]) != _origin(told):
            raise UsageError(
                f"join: expected {name!r} to be the same model in both, its features come from different "
                "places; compare one of them under another name"
            )
        models.setdefault(name, told)
    parts = [{key: value for key, value in c.provenance.items() if key != "models"} for c in (one, other)]
    same = {key: value for key, value in parts[0].items() if key in parts[1] and parts[1][key] == value}
    rest = [{key: value for key, value in part.items() if key not in same} for part in parts]
    provenance = {"models": models, **same, "samples": _samples_of(one, other)}
    if any(rest):
        provenance["joined"] = rest
    warnings = tuple(dict.fromkeys([*one.warnings, *other.warnings, *remarks]))
    return Comparison((*one.panels, *other.panels), one.levels, one.n, warnings, provenance)


def difference(one: Comparison, other: Comparison) -> Comparison:
    """Values of the first minus values of the second, with a conservative interval.

    Is a student more like the teacher than a random network is? The difference of teacher-student and
    teacher-random says so, site pair by site pair.

    Parameters
    ----------
    one, other
        Comparisons of one measure and one pair each, of the same samples, noise, levels and site names.

    Returns
    -------
    Comparison
        One panel with ``value``, ``ci_low`` and ``ci_high``; there is no null level and no p-value. The
        interval is [low1 - high2, high1 - low2]: half widths are added. Both values come from the same
        samples, so treating them as independent would be wrong, and how they depend on each other is not
        known. The standard deviation of a difference is at most the sum of both, so for estimates with
        normal errors the interval covers at least as often as the two it is made of; without normality
        Bonferroni's inequality bounds the error by the sum of theirs.

    Raises
    ------
    UsageError
        If the two do not fit together; says why.

    Examples
    --------
    >>> import numpy as np
    >>> from featlens import compare
    >>> x, y = np.random.default_rng(0).normal(size=(2, 80, 5))
    >>> near = compare({"teacher": {"enc": x}, "student": {"enc": x + 0.1 * y}}, permutations=20)
    >>> far = compare({"teacher": {"enc": x}, "random": {"enc": y}}, permutations=20)
    >>> print(near.difference(far))
    Comparison(difference of cka: teacher x student minus random, 1 sigma, 1 x 1 sites, n 80)
    """
    remarks = _same_samples(one, other, "difference")
    first, second = _matching_panels(one, other)
    provenance = {
        "models": {**other.provenance.get("models", {}), **one.provenance.get("models", {})},
        "samples": _samples_of(one, other),
        "level": one.provenance.get("level"),
        "minuend": dict(one.provenance),
        "subtrahend": dict(other.provenance),
    }
    warnings = tuple(dict.fromkeys([*one.warnings, *other.warnings, *remarks]))
    return Comparison((_difference(first, second),), one.levels, one.n, warnings, provenance)


def _matching_panels(one: Comparison, other: Comparison) -> tuple[Panel, Panel]:
    """The only panel of each, of the same measure and sites."""
    if len(other.panels) != 1 or len(one.panels) != 1:
        raise UsageError(
            f"difference: expected one measure and pair on either side, got {len(one.panels)} and "
            f"{len(other.panels)}; choose with .select(measure=, a=, b=)"
        )
    first, second = one.panels[0], other.panels[0]
    if first.measure != second.measure:
        raise UsageError(
            f"difference: expected one measure, got {first.measure} and {second.measure}; choose with "
            ".select(measure=)"
        )
    if (first.sites_a, first.sites_b) != (second.sites_a, second.sites_b):
        raise UsageError(
            f"difference: expected the same site names in the same order, {named(first)} and {named(second)} "
            "have different ones; compare both with the same sites="
        )
    return first, second


def _difference(first: Panel, second: Panel) -> Panel:
    arrays = {name: np.full(first.flags.shape, np.nan) for name in QUANTITIES}
    for name, taken in (("value", "value"), ("ci_low", "ci_high"), ("ci_high", "ci_low")):
        arrays[name] = first.arrays[name] - second.arrays[taken]
    remarks = tuple(dict.fromkeys([*first.remarks, *second.remarks]))
    flags = _moved(first, remarks) | _moved(second, remarks)
    (low, high), (low2, high2) = first.bounds, second.bounds
    return Panel(
        DIFFERENCE + first.measure,
        first.direction,
        f"{first.title}, difference",
        (low - high2, high - low2),
        _both(first.a, second.a),
        _both(first.b, second.b),
        first.sites_a,
        first.sites_b,
        arrays,
        flags,
        remarks,
        {
            "plan": f"{named(first)}, minus {named(second)}",
            "interval": RULE,
            "null": "none: that both values are equal is not what permuted samples are like",
        },
    )


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first} minus {second}"


def _moved(panel: Panel, remarks: tuple[str, ...]) -> NDArray[np.int64]:
    """Flags of a panel with the bits of other remarks."""
    out = np.zeros_like(panel.flags)
    for bit, remark in enumerate(panel.remarks):
        out |= (panel.flags >> bit & 1) << remarks.index(remark)
    return out


def _origin(told: Any) -> Any:
    """Provenance of a model without the path, under which the same file may be reached in several ways."""
    return {key: value for key, value in told.items() if key != "file"} if isinstance(told, Mapping) else told


def _samples_of(one: Comparison, other: Comparison) -> dict[str, Any]:
    return {**other.provenance.get("samples", {}), **one.provenance.get("samples", {})}


def _same_samples(one: Comparison, other: Comparison, what: str) -> list[str]:
    """Refuse comparisons of other samples, noise or levels; a warning where nothing says which they are."""
    if not isinstance(other, Comparison):
        raise UsageError(f"{what}: expected a Comparison, got {type(other).__name__}; see featlens.compare")
    if one.n != other.n:
        raise UsageError(
            f"{what}: expected comparisons of the same samples, got {one.n} and {other.n} of them; compare "
            "both on the same samples"
        )
    told = [c.provenance.get("samples", {}) for c in (one, other)]
    for key in dict.fromkeys([*told[0], *told[1]]):
        if key in DESCRIPTIVE:
            continue
        known = [samples.get(key) for samples in told]
        if None not in known and known[0] != known[1]:
            raise UsageError(
                f"{what}: expected comparisons of the same samples and noise, their {key} differs "
                f"({known[0]}; {known[1]}); compare both on the same samples"
            )
    if one.levels != other.levels:
        raise UsageError(
            f"{what}: expected the same noise levels, got {_shown(one)} and {_shown(other)}; compare both "
            "with the same sigmas="
        )
    levels = [c.provenance.get("level") for c in (one, other)]
    if None not in levels and levels[0] != levels[1]:
        raise UsageError(
            f"{what}: expected intervals of the same confidence, got {levels[0]} and {levels[1]}; compare "
            "both with the same level="
        )
    return [] if all(samples.get("digest") for samples in told) else [UNKNOWN]


def _shown(comparison: Comparison) -> str:
    return ", ".join(f"{a:g}" if a == b else f"{a:g} x {b:g}" for a, b in comparison.levels)
