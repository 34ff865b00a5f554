"""Why does initialising a one-step generator from a diffusion teacher work: capture, compare, report.

Names are imported when they are first used, so ``import featlens`` costs nothing and never imports torch.
"""

from __future__ import annotations

from featlens._version import __version__

# Not from typing, whose import takes as long as all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from featlens import measures, reduce, testing
    from featlens.adapters import load
    from featlens.capture import Capture
    from featlens.comparison import Comparison, ComparisonPlan, compare, plan_comparison
    from featlens.denoiser import Denoiser, EDMDenoiser
    from featlens.errors import FeatlensError, FeatlensWarning
    from featlens.extraction import ExtractionPlan, extract, plan_extraction
    from featlens.inspection import DataReport, inspect_data
    from featlens.samples import SampleSet
    from featlens.site import Site, sites
    from featlens.store import FeatureStore

__all__ = [
    "Capture",
    "Comparison",
    "ComparisonPlan",
    "DataReport",
    "Denoiser",
    "EDMDenoiser",
    "ExtractionPlan",
    "FeatlensError",
    "FeatlensWarning",
    "FeatureStore",
    "SampleSet",
    "Site",
    "__version__",
    "compare",
    "extract",
    "inspect_data",
    "load",
    "measures",
    "plan_comparison",
    "plan_extraction",
    "reduce",
    "sites",
    "testing",
]

_HOME = {
    "Capture": "capture",
    "Comparison": "comparison",
    "Denoiser": "denoiser",
    "EDMDenoiser": "denoiser",
    "ExtractionPlan": "extraction",
    "FeatlensError": "errors",
    "FeatlensWarning": "errors",
    "FeatureStore": "store",
    "SampleSet": "samples",
    "Site": "site",
    "compare": "comparison",
    "plan_comparison": "comparison",
    "ComparisonPlan": "comparison",
    "DataReport": "inspection",
    "inspect_data": "inspection",
    "extract": "extraction",
    "load": "adapters",
    "plan_extraction": "extraction",
    "sites": "site",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(f"featlens.{_HOME[name]}"), name)
    if name in ("measures", "reduce", "testing"):
        return importlib.import_module(f"featlens.{name}")
    raise AttributeError(f"module 'featlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
