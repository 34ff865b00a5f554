"""Checks that several settings share."""

from __future__ import annotations

import math
from typing import Any

from featlens.errors import UsageError

__all__ = ["positive"]


def positive(config: Any, *names: str) -> None:
    """Refuse a setting that is not a finite number above 0."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise UsageError(f"configuration: {name} must be above 0, got {getattr(config, name)}")
