"""Models by location: the entry-point group ``featlens.adapters`` turns a string into a denoiser."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.options import known_options, require_options, split_options
from featlens.plugins import EntryPoint, entry_points, load_entry_point

if TYPE_CHECKING:
    from featlens.denoiser import Denoiser

__all__ = ["Adapter", "load"]


class Adapter(Protocol):
    """Loads a model, or returns None if the location is not of its kind.

    Its keyword parameters after the first two are its options.
    """

    def __call__(self, location: str, device: str, /, **options: Any) -> Denoiser | None:
        """Denoiser on ``device``."""


def load(location: str | Path, device: str = "cpu", **options: Any) -> Denoiser:
    """Denoiser behind a location.

    Parameters
    ----------
    location
        A run folder of ours (``runs/digits/teacher``) or one of its snapshots, a ``.pkl`` of EDM, a folder
        of diffusers, ``python:module:function`` or ``python:./file.py:function`` for a function that returns
        a denoiser, or ``adapter:...`` for any installed adapter. Options may follow, as in
        ``...:width=32,depth=2``.
    device
        Where its weights go.
    **options
        Options of the model, as after the location.

    Returns
    -------
    Denoiser
        As its adapter made it.

    Raises
    ------
    UsageError
        There is no such model or option.
    FeatlensError
        The model is there and cannot be loaded.
    """
    text, given = _options(os.fspath(location), options)
    adapters = {point.name: point for point in entry_points("featlens.adapters")}
    prefix, _, rest = text.partition(":")
    if rest and prefix in adapters:
        adapter = _adapter(adapters[prefix])
        require_options(adapter, given, f"adapter {prefix!r}", skip=2)
        model = adapter(rest, device, **given)
        if model is None:
            raise UsageError(f"{text!r} is no location for {prefix!r}: {_expected(rest)}")
        return model
    return _recognised(text, device, given, adapters)


def _recognised(text: str, device: str, options: dict[str, Any], adapters: dict[str, EntryPoint]) -> Denoiser:
    """What the first adapter that knows the location makes of it."""
    unusable, refusals = [], []
    # A bare "module:function" would match any misspelled prefix, so Python modules need theirs.
    for name in sorted(set(adapters) - {"python"}):
        try:
            adapter = _adapter(adapters[name])
        except FeatlensError as error:
            unusable.append(str(error))
            continue
        try:
            # Unknown options are refused only by the adapter whose location it is.
            model = adapter(text, device, **known_options(adapter, options, skip=2))
        except UsageError as refusal:
            refusals.append(refusal)
            continue
        if model is not None:
            require_options(adapter, options, f"adapter {name!r}", skip=2)
            return model
    if refusals:
        raise refusals[0]
    broken = "".join(f" ({reason})" for reason in unusable)
    prefix, _, rest = text.partition(":")
    if os.path.exists(text):  # noqa: PTH110 - a path may not even be possible
        raise UsageError(f"{text!r} is not a model that featlens knows: {_EXPECTED}{broken}")
    if rest and len(prefix) > 1:
        raise UsageError(
            f"unknown kind of model {prefix!r} in {text!r}: {choices_hint(prefix, adapters)}{broken}"
        )
    raise UsageError(f"no model at {text!r}: {_expected(text)}{broken}")


_EXPECTED = (
    "expected a run folder with run.json, a .pkl of EDM, a folder of diffusers with config.json, or "
    "python:module:function"
)


def _expected(location: str) -> str:
    """What is expected, and where a name of the hub is given, how to get the model."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", location) or os.path.exists(location):  # noqa: PTH110
        return _EXPECTED
    name = location.partition("/")[2]
    return (
        f"{_EXPECTED}; featlens downloads nothing: if it is a model of the Hugging Face hub, run "
        f"'hf download {location} --local-dir models/{name}' and give models/{name}"
    )


def _options(location: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The location without options, and all options."""
    # A path that is there is never taken apart.
    if os.path.exists(location):  # noqa: PTH110
        return location, options
    text, written = split_options(location)
    twice = sorted(set(written) & set(options))
    if twice:
        raise UsageError(f"load: option {twice[0]!r} is in {location!r} and an argument; give it once")
    return text, {**written, **options}


def _adapter(point: EntryPoint) -> Adapter:
    try:
        adapter: Adapter = load_entry_point(point)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise FeatlensError(
            f"adapter {point.name!r} of {point.distribution} cannot be loaded: {reason}; install or update it"
        ) from error
    return adapter
