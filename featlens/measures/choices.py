"""Options of measures, checked: one of several words, a number, a count."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from featlens.errors import UsageError, choices_hint

__all__ = ["one_of", "positive", "whole"]


def one_of(value: Any, choices: Sequence[str], measure: str, option: str) -> str:
    """The value if it is one of the choices; otherwise an error with the nearest."""
    if value not in choices:
        raise UsageError(f"{measure}: unknown {option} {value!r}: {choices_hint(str(value), choices)}")
    return str(value)


def positive(value: Any, measure: str, option: str) -> float:
    """The value if it is a finite number above 0."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{measure}: {option} must be a finite number above 0, got {value!r}")
    return float(value)


def whole(value: Any, least: int, measure: str, option: str) -> int:
    """The value if it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UsageError(f"{measure}: {option} must be a whole number of at least {least}, got {value!r}")
    return int(value)
