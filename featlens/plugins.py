"""Entry points without ``importlib.metadata``, whose import alone costs half of the time ``--help`` may take.

Only ``entry_points.txt`` files of installed distributions on ``sys.path`` are read; tests compare the result
with ``importlib.metadata``.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["EntryPoint", "entry_points", "load_entry_point"]


class EntryPoint:
    """One line ``name = module:attribute`` of a group, and the distribution it comes from."""

    __slots__ = ("distribution", "name", "value")

    def __init__(self, name: str, value: str, distribution: str) -> None:
        self.name, self.value, self.distribution = name, value, distribution

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EntryPoint) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"EntryPoint({self.name!r}, {self.value!r}, {self.distribution!r})"


def entry_points(group: str) -> list[EntryPoint]:
    """Entry points of ``group``, featlens' own first; a name that is taken twice goes to the first."""
    # Of two versions of a distribution the first on the path is the one that is imported.
    texts: dict[str, str] = {}
    for folder in dict.fromkeys(entry or os.curdir for entry in sys.path):
        for distribution, text in _entry_point_files(folder):
            texts.setdefault(distribution, text)
    points = [point for distribution, text in texts.items() for point in _parse(text, group, distribution)]
    found: dict[str, EntryPoint] = {}
    for point in sorted(points, key=lambda point: point.distribution != "featlens"):
        found.setdefault(point.name, point)
    return list(found.values())


def _entry_point_files(folder: str) -> list[tuple[str, str]]:
    """Distributions in a folder with their ``entry_points.txt``, empty where there is none."""
    out = []
    try:
        entries = sorted(
            entry.name for entry in os.scandir(folder) if entry.name.endswith((".dist-info", ".egg-info"))
        )
    except OSError:
        return []
    for name in entries:
        try:
            with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8") as file:  # noqa: PTH118
                text = file.read()
        except (OSError, UnicodeDecodeError):
            text = ""
        out.append((name.rsplit(".", 1)[0].split("-")[0].lower(), text))
    return out


def _parse(text: str, group: str, distribution: str) -> list[EntryPoint]:
    if f"[{group}]" not in text:
        return []
    out, inside = [], False
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("["):
            inside = line == f"[{group}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            out.append(EntryPoint(name.strip(), value.split("[")[0].strip(), distribution))
    return out


def load_entry_point(point: EntryPoint) -> Any:
    """Import the module of an entry point and return the module or the attribute it names."""
    import importlib

    module_name, _, attributes = point.value.partition(":")
    target: Any = importlib.import_module(module_name)
    for attribute in filter(None, attributes.split(".")):
        target = getattr(target, attribute)
    return target
