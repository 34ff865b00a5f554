"""Arguments of a comparison: feature files and models, each with a name of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featlens.errors import UsageError

__all__ = ["Source", "named_sources", "stem_of"]


@dataclass(frozen=True)
class Source:
    """One argument of a comparison: its name, where it is, and whether that is a feature file."""

    name: str
    location: str
    is_file: bool


def named_sources(words: Sequence[str]) -> list[Source]:
    """Arguments ``PATH`` or ``NAME=PATH`` with a name of its own for each.

    >>> [source.name for source in named_sources(["x/a.h5", "y/a.h5", "new=runs/b"])]
    ['x/a', 'y/a', 'new']
    """
    pairs = [_parted(word) for word in words]
    given = [name for name, _ in pairs if name is not None]
    for name in given:
        if given.count(name) > 1:
            raise UsageError(f"the name {name!r} is given twice; every model needs a name of its own")
    names = _unique([location for name, location in pairs if name is None], given)
    return [
        Source(names.pop(0) if name is None else name, location, is_feature_file(location))
        for name, location in pairs
    ]


def _parted(word: str) -> tuple[str | None, str]:
    """Name and location; a path that is there is never taken apart, nor is an option of a model."""
    name, found, location = word.partition("=")
    if not found or os.path.exists(word) or set(name) & {":", "/", os.sep}:  # noqa: PTH110
        return None, word
    if not name.strip() or not location:
        raise UsageError(f"{word!r}: expected NAME=PATH, with a name and a path")
    return name.strip(), location


def _unique(locations: Sequence[str], taken: Sequence[str]) -> list[str]:
    """Names by the last parts of the locations, as many parts as tell them apart."""
    names = [stem_of(location) for location in locations]
    for count in (2, 3, 4):
        if len({*names, *taken}) == len(names) + len(taken):
            return names
        names = [
            stem_of(location, count) if (*names, *taken).count(name) > 1 else name
            for location, name in zip(locations, names, strict=True)
        ]
    # The same path twice: the order tells them apart.
    return [
        f"{stem_of(location)} ({index})" if (*names, *taken).count(name) > 1 else name
        for index, (location, name) in enumerate(zip(locations, names, strict=True), start=1)
    ]


def stem_of(location: str, parts: int = 1) -> str:
    """Last parts of a location without suffix, or what comes last in ``python:module:function``.

    Options of a model come along from the second part on.

    >>> stem_of("runs/digits/teacher"), stem_of("a/b.h5", 2), stem_of("python:models:make:width=4")
    ('teacher', 'a/b', 'make')
    >>> stem_of("python:models:make:width=4", 2)
    'make:width=4'
    """
    options = re.search(r":\s*[A-Za-z_]\w*\s*=", location)
    text, end = (
        (location, "") if options is None else (location[: options.start()], location[options.start() :])
    )
    if os.path.exists(location):  # noqa: PTH110
        text, end = location, ""
    elif ":" in text:
        end = end if parts > 1 else ""
        return ":".join(text.split(":")[-max(1, parts - 1) :]) + end
    path = Path(text)
    path = path if path.name not in ("", "..") else path.absolute().resolve()
    suffix = path.suffix if path.suffix in (".h5", ".hdf5", ".safetensors") else ""
    stem = "/".join((*path.parts[-parts:-1], path.name.removesuffix(suffix)))
    return (stem + (end if parts > 1 else "")) or location


def is_feature_file(location: str) -> bool:
    """Whether a location is that of a feature file; else it is that of a model.

    >>> [is_feature_file(location) for location in ("teacher.h5", "runs/teacher", "python:models:make")]
    [True, False, False]
    """
    from featlens.plugins import entry_points

    path = Path(location)
    if path.is_file():
        return path.suffix != ".safetensors"
    prefix, _, rest = location.partition(":")
    is_prefixed = bool(rest) and prefix in {point.name for point in entry_points("featlens.adapters")}
    return path.suffix in (".h5", ".hdf5") and not is_prefixed
