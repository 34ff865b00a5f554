"""Models by location: the entry-point group ``featlens.adapters`` turns a string into a denoiser."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.plugins import EntryPoint, entry_points, load_entry_point

if TYPE_CHECKING:
    from featlens.denoiser import Denoiser

__all__ = ["Adapter", "load", "load_python"]


class Adapter(Protocol):
    """Loads a model, or returns None if the location is not of its kind."""

    def __call__(self, location: str, device: str) -> Denoiser | None:
        """Denoiser on ``device``."""


def load(location: str | Path, device: str = "cpu") -> Denoiser:
    """Denoiser behind a location.

    Parameters
    ----------
    location
        A run folder of ours (``runs/digits/teacher``) or one of its snapshots, ``python:module:function`` for
        a function without arguments that returns a denoiser, or ``adapter:...`` for any installed adapter.
    device
        Where its weights go.
    """
    text = str(location)
    adapters = {point.name: point for point in entry_points("featlens.adapters")}
    prefix, _, rest = text.partition(":")
    if rest and prefix in adapters:
        model = _adapter(adapters[prefix])(rest, device)
        if model is None:
            raise UsageError(f"{text!r} is no location for {prefix!r}: {_EXPECTED}")
        return model
    unusable = []
    # A bare "module:function" would match any misspelled prefix, so Python modules need theirs.
    for name in sorted(set(adapters) - {"python"}):
        try:
            adapter = _adapter(adapters[name])
        except FeatlensError as error:
            unusable.append(str(error))
            continue
        model = adapter(text, device)
        if model is not None:
            return model
    broken = "".join(f" ({reason})" for reason in unusable)
    if rest and not Path(text).exists() and len(prefix) > 1:
        hint = choices_hint(prefix, adapters)
        raise UsageError(f"unknown kind of model {prefix!r} in {text!r}: {hint}{broken}")
    if not Path(text).exists():
        raise UsageError(f"no model at {text!r}: {_EXPECTED}{broken}")
    raise UsageError(f"{text!r} is not a model that featlens knows: {_EXPECTED}{broken}")


_EXPECTED = "expected a run folder with run.json, or python:module:function"


def _adapter(point: EntryPoint) -> Adapter:
    try:
        adapter: Adapter = load_entry_point(point)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise FeatlensError(
            f"adapter {point.name!r} of {point.distribution} cannot be loaded: {reason}; install or update it"
        ) from error
    return adapter


def load_python(location: str, device: str) -> Denoiser | None:
    """``module:function`` -> what the function returns; modules are also looked up in the working folder."""
    module_name, _, attribute = location.partition(":")
    if not attribute or "/" in location:
        return None
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"python:{location}: no module {error.name!r}; run from its folder or install it"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise UsageError(
            f"python:{location}: {module_name} has no {attribute!r}: {choices_hint(attribute, known)}"
        )
    model = getattr(module, attribute)()
    expected = ("sample_shape", "num_labels", "sigma_data", "network")
    missing = [name for name in expected if not hasattr(model, name)]
    if missing or not callable(model):
        raise FeatlensError(
            f"python:{location} returned a {type(model).__name__} without "
            f"{', '.join(missing) or '__call__'}; a denoiser is expected (see featlens.Denoiser)"
        )
    model.network.to(device)
    denoiser: Denoiser = model
    return denoiser
