"""What a selection means in a given network: which modules, input or output, which tensor, which call."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import nn

from featlens.errors import FeatlensError, SiteError, UsageError, choices_hint
from featlens.names import compile_pattern
from featlens.outputs import bracketed

__all__ = ["Selection", "Target", "Tree", "canonical", "numbered"]

Chooser: TypeAlias = "str | int | type[nn.Module] | Callable[[str, nn.Module], bool]"
Selection: TypeAlias = "Chooser | Sequence[Chooser]"
"""Glob, ``re:``, ``type:``, ``index:``, an int, a class, a function of (path, module), or several."""

_SUFFIX = re.compile(r"(.*?)(?:@(in|out))?((?:\[[^\[\]]+\])*)(?:#(\d+))?", re.DOTALL)
_SUFFIX_OF_REGEX = re.compile(r"(.*?)(?:@(in|out)((?:\[[^\[\]]+\])*)(?:#(\d+))?)?", re.DOTALL)
# Wrappers that hold the module they wrap under this name, and nothing else.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Target:
    """One thing to keep: the output or input of ``module``, a tensor inside it, every call or one."""

    path: str
    module: nn.Module = field(repr=False, compare=False)
    side: str = "out"
    keys: tuple[str, ...] = ()
    call: int | None = None

    @cached_property
    def base(self) -> str:
        """Name of the whole output or input; ``@out`` and ``@in`` are those of the network itself."""
        return self.path if self.side == "out" and self.path else f"{self.path}@{self.side}"

    @cached_property
    def site(self) -> str:
        """Name without the number of the call."""
        return self.base + bracketed(self.keys)

    @cached_property
    def name(self) -> str:
        """Canonical name."""
        return self.site if self.call is None else f"{self.site}#{self.call}"


def canonical(name: str) -> str:
    """A name as sites are called: without ``@out`` and quotes.

    >>> canonical("mid@out['sample']#1")
    'mid[sample]#1'
    """
    found = re.fullmatch(r"(.+)@out((?:\[[^\[\]]+\])*(?:#\d+)?)", name, re.DOTALL)
    return re.sub(r"\[(['\"])(.*?)\1\]", r"[\2]", found[1] + found[2] if found else name)


def numbered(names: Sequence[str]) -> list[str]:
    """Names of calls in order of execution, with ``#k`` where a name comes several times.

    >>> numbered(["a", "b", "a"])
    ['a#0', 'b', 'a#1']
    """
    total, so_far = Counter(names), Counter[str]()
    out = []
    for name in names:
        out.append(f"{name}#{so_far[name]}" if total[name] > 1 else name)
        so_far[name] += 1
    return out


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, torch.compile, FSDP and checkpoint wrappers.

    Raises
    ------
    FeatlensError
        For nn.DataParallel over several devices, whose copies run in threads, in no order.
    """
    while True:
        inside = next((key for key in _WRAPPERS if key in module._modules), None)
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise FeatlensError(
                f"capture: nn.DataParallel over {len(module.device_ids)} devices runs copies of the network "
                "in threads; capture its .module on one device, or use DistributedDataParallel"
            )
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inside = "module"
        child = None if inside is None else module._modules[inside]
        if child is None:
            return module
        module = child


class Tree:
    """The modules of a network by path, wrappers left out, in order of definition.

    Parameters
    ----------
    module
        Any module; wrapped or not.
    """

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            has_network = isinstance(getattr(module, "network", None), nn.Module)
            raise UsageError(
                f"sites are looked up in an nn.Module, got a {type(module).__name__}; "
                f"pass {'its .network' if has_network else 'one'}"
            )
        self.root = unwrapped(module)
        if isinstance(self.root, torch.jit.ScriptModule):
            raise FeatlensError(
                "capture: TorchScript runs no hooks of inner modules; capture the module it was made of"
            )
        self.where = f"the network {type(self.root).__name__}"
        self.modules: dict[str, nn.Module] = {}
        self.containers: dict[str, nn.Module] = {}
        self.aliases: dict[str, str] = {}
        self._walk(self.root, "", {})

    def _walk(self, module: nn.Module, path: str, known: dict[nn.Module, str]) -> None:
        known[module] = path
        if path:
            (self.modules if _runs(module) else self.containers)[path] = module
        for key, child in module._modules.items():
            if child is None:
                continue
            inner, at = unwrapped(child), f"{path}.{key}" if path else key
            if inner in known:
                self.aliases[at] = known[inner]
            else:
                self._walk(inner, at, known)

    @cached_property
    def index(self) -> dict[str, int]:
        """Position of each site in the order of definition."""
        return {path: position for position, path in enumerate(self.modules)}

    def choose(self, selection: Selection | None) -> list[Target]:
        """What ``selection`` means here, each once, in order of definition; every output if None.

        Raises
        ------
        SiteError
            If a part of the selection matches nothing; names the nearest or the choices.
        """
        if selection is None:
            return [Target(path, module) for path, module in self.modules.items()]
        if isinstance(selection, Sequence) and not isinstance(selection, str):
            parts: list[Chooser] = list(selection)
        else:
            parts = [selection]
        if not parts:
            raise SiteError(f"no site was asked for in {self.where}: {choices_hint('', self.modules)}")
        found = dict.fromkeys(target for part in parts for target in self._part(part))
        # A site of which every call is wanted needs no single call besides.
        kept = [target for target in found if target.call is None or replace(target, call=None) not in found]
        for target in kept:
            if isinstance(target.module, torch.jit.ScriptModule):
                raise FeatlensError(
                    f"capture: {target.path!r} is a TorchScript module, which takes no hooks; leave it out"
                )
        names = Counter(target.name for target in kept)
        if names and max(names.values()) > 1:
            raise SiteError(f"two sites are called {names.most_common(1)[0][0]!r}; leave one out")
        return sorted(kept, key=lambda target: self.index.get(target.path, -1))

    def _part(self, part: Chooser) -> Iterator[Target]:
        side = "out"
        keys: tuple[str, ...] = ()
        call: int | None = None
        if isinstance(part, str):
            paths, side, keys, call = self._text(part)
        elif isinstance(part, int) and not isinstance(part, bool):
            paths = self._indexed(str(part), repr(part))
        elif isinstance(part, type) and issubclass(part, nn.Module):
            kind = part
            paths = [path for path, module in self.modules.items() if isinstance(module, kind)]
        elif callable(part) and not isinstance(part, type):
            chosen = part
            paths = [path for path, module in self.modules.items() if chosen(path, module)]
        else:
            raise UsageError(f"sites are chosen by text, number, class or function, got {part!r}")
        if not paths:
            shown = repr(part) if not callable(part) else f"chosen by {getattr(part, '__name__', part)!r}"
            raise SiteError(f"no site {shown} in {self.where}: {self._hint(part)}")
        return (Target(path, self.modules.get(path, self.root), side, keys, call) for path in paths)

    def _hint(self, part: Chooser) -> str:
        text = part if isinstance(part, str) else ""
        path = _split(text, _SUFFIX)[0]
        if text.startswith("type:"):
            return choices_hint(path[5:], sorted({type(module).__name__ for module in self.modules.values()}))
        for alias, origin in self.aliases.items():
            if path == alias or path.startswith(f"{alias}."):
                return f"{alias!r} is the same module as {origin!r}; ask for {origin + path[len(alias) :]!r}"
        if path in self.containers:
            kind = type(self.containers[path]).__name__
            return f"a {kind} only holds others and never runs; ask for {path + '.*'!r}"
        if not self.modules:
            return "it has no inner modules; ask for '@out', its own output, or '@in'"
        return choices_hint(text, self.modules)

    def _text(self, text: str) -> tuple[list[str], str, tuple[str, ...], int | None]:
        if text in self.modules:
            return [text], "out", (), None
        pattern, side, keys, call = _split(text, _SUFFIX_OF_REGEX if text.startswith("re:") else _SUFFIX)
        if not pattern and text.startswith("@"):
            return [""], side, keys, call
        if pattern.startswith("type:"):
            paths = [path for path, module in self.modules.items() if _is_a(module, pattern[5:])]
            return paths, side, keys, call
        if pattern.startswith("index:"):
            return self._indexed(pattern[6:], repr(text)), side, keys, call
        # A path may itself hold brackets: the longest that is there verbatim comes first.
        for split in range(len(keys), 0, -1):
            if pattern + bracketed(keys[:split]) in self.modules:
                return [pattern + bracketed(keys[:split])], side, keys[split:], call
        for split in range(len(keys) + 1):
            paths = self._matching(pattern + bracketed(keys[:split]))
            if paths or pattern.startswith("re:"):
                return paths, side, keys[split:], call
        return [], side, keys, call

    def _matching(self, pattern: str) -> list[str]:
        if pattern in self.modules:
            return [pattern]
        return [path for path in self.modules if compile_pattern(pattern).fullmatch(path)]

    def _indexed(self, text: str, shown: str) -> list[str]:
        known = list(self.modules)
        if re.fullmatch(r"-?\d+", text):
            position = int(text)
            if -len(known) <= position < len(known):
                return [known[position]]
            raise SiteError(
                f"no site {shown} in {self.where}: it has {len(known)}, index:0 to index:{len(known) - 1}"
            )
        parts = text.split(":")
        numbers = all(re.fullmatch(r"(-?\d+)?", part) for part in parts)
        if len(parts) not in (2, 3) or not numbers or parts[2:] == ["0"]:
            raise UsageError(f"site {shown}: expected index:3, index:-1 or index:2:6")
        return known[slice(*(int(part) if part else None for part in parts))]


def _split(text: str, suffix: re.Pattern[str]) -> tuple[str, str, tuple[str, ...], int | None]:
    found = suffix.fullmatch(text)
    if found is None:  # never: the first group takes anything
        return text, "out", (), None
    keys = tuple(key.strip("'\"") for key in re.findall(r"\[([^\[\]]+)\]", found[3] or ""))
    return found[1], found[2] or "out", keys, None if found[4] is None else int(found[4])


def _is_a(module: nn.Module, kind: str) -> bool:
    names = [base.__name__ for base in type(module).__mro__]
    return any(compile_pattern(kind).fullmatch(name) for name in names[: names.index("Module") + 1])


def _runs(module: nn.Module) -> bool:
    """False for mere containers such as ModuleList, which have no forward pass of their own."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward
