"""Linear probes on feature files: what the features hold, by site and noise level."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featlens_probes.linear import LinearProbe
    from featlens_probes.result import ProbeResult
    from featlens_probes.sweep import probe

__all__ = ["LinearProbe", "ProbeResult", "probe"]

_HOME = {"LinearProbe": "linear", "ProbeResult": "result", "probe": "sweep"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"featlens_probes.{_HOME[name]}"), name)
    raise AttributeError(f"module 'featlens_probes' has no attribute {name!r}")
