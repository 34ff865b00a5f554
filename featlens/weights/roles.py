"""Roles of a network's tensors: where in it they are, and of what kind of layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from featlens.errors import UsageError, choices_hint
from featlens.names import compile_pattern
from featlens.weights.places import places
from featlens.weights.rules import WRAPPERS, bare, parse_roles

__all__ = ["roles", "select"]

_CONDITIONED = re.compile(r"(affine|time_emb_proj|emb_layers|modulation|ada(_?ln)?(_\w+)?)", re.IGNORECASE)
"""Layers inside a block that bring the noise level into it."""

_MIXERS = re.compile(r"(qkv|to_(q|k|v|kv|qkv|out)|query|key|value|proj_attn|(q|k|v)_proj|add_(q|k|v)_proj)")
"""Layers that only attention has."""

_PROJECTION = re.compile(r"(proj|out|out_proj)")
"""Layers of attention where they stand beside one of :data:`_MIXERS`."""


def roles(module: nn.Module) -> dict[str, frozenset[str]]:
    """Roles of every tensor in the state of ``module``, by name.

    Every tensor has exactly one kind of layer: ``conv``, ``norm``, ``attention`` (projections, not the norm
    before them), ``embedding`` (whatever takes the noise level or label into a block, too), ``linear`` or
    ``other``. In networks with the names of EDM, ADM, DiT or diffusers it also has a place: ``encoder``,
    ``decoder``, ``bottleneck``, ``in``, ``out``, ``noise_embedding`` (the layers that embed noise level and
    labels once for all blocks), ``head``, ``resolution=16``, ``block=3`` (blocks counted in order of
    execution) and ``depth=0``, ``1`` or ``2`` (which third of the blocks).

    Examples
    --------
    >>> from torch import nn
    >>> blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    >>> net = nn.ModuleDict({"conv_in": nn.Conv2d(1, 4, 3), "blocks": blocks, "conv_out": nn.Conv2d(4, 1, 3)})
    >>> sorted(roles(net)["conv_in.weight"]), sorted(roles(net)["blocks.1.bias"])
    (['conv', 'encoder', 'in'], ['block=1', 'decoder', 'depth=1', 'linear'])
    """
    names = [name for name, value in module.state_dict().items() if isinstance(value, Tensor)]
    modules = dict(module.named_modules(remove_duplicate=False))
    found = places(names, _settings(modules))
    return {
        name: frozenset(place.roles | {_kind(name, modules, place.roles)}) for name, place in found.items()
    }


def _settings(modules: Mapping[str, nn.Module]) -> Mapping[str, Any]:
    """The settings of the network itself, which may be wrapped."""
    for path, module in modules.items():
        config = getattr(module, "config", None)
        if set(path.split(".")) <= {"", *WRAPPERS} and isinstance(config, Mapping):
            return config
    return {}


def _kind(name: str, modules: Mapping[str, nn.Module], placed: set[str]) -> str:
    """Kind of layer that owns the tensor."""
    path = name.rpartition(".")[0]
    parts = path.split(".") if path else []
    # Wrappers and the network itself may have any class name.
    inner = max(1, len(parts) - bare(name).count(".") + 1)
    chain = [".".join(parts[:end]) for end in range(len(parts), inner - 1, -1)]
    above = [type(modules[at]).__name__ for at in chain if at in modules]
    owner = above[0] if above else ""
    embeds = any("Embed" in kind for kind in above) and "in" not in placed
    if "noise_embedding" in placed or embeds or any(_CONDITIONED.fullmatch(part) for part in parts):
        return "embedding"
    if owner == "Embedding" or "pos_embed" in name.rpartition(".")[2]:
        return "embedding"
    if "Norm" in owner:
        return "norm"
    if any("Norm" in kind for kind in above[1:2]):
        return "embedding"
    if _attends(parts, above, modules):
        return "attention"
    if isinstance(modules.get(path), nn.modules.conv._ConvNd) or "Conv" in owner:
        return "conv"
    return "linear" if "Linear" in owner else "other"


def _attends(parts: list[str], above: list[str], modules: Mapping[str, nn.Module]) -> bool:
    if any(_MIXERS.fullmatch(part) for part in parts[-2:]):
        return True
    # A block that holds convolutions besides its attention is called after both.
    if any(
        re.search(r"Attention|Attn", kind) and not re.search(r"(Down|Up|Mid)Block", kind)
        for kind in above[:3]
    ):
        return True
    holder = ".".join(parts[:-1])
    beside = modules[holder]._modules if holder in modules else {}
    return bool(parts) and bool(_PROJECTION.fullmatch(parts[-1])) and any(map(_MIXERS.fullmatch, beside))


def select(module: nn.Module, match: str) -> list[str]:
    """Names of the tensors of ``module`` that ``match`` means, in the order of its state.

    ``match`` is a glob, ``re:`` and a regular expression, or ``role:`` and roles, as in
    :class:`featlens.weights.Rule`.

    Raises
    ------
    UsageError
        If nothing matches (with the nearest names), or if a role is unknown.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(1, 4))
    >>> select(net, "role:norm"), select(net, "*.bias"), select(net, "0")
    (['1.weight', '1.bias'], ['0.bias', '1.bias'], ['0.weight', '0.bias'])
    """
    return chosen(roles(module), match, f"the network {type(module).__name__}")


def chosen(known: Mapping[str, frozenset[str]], match: str, where: str) -> list[str]:
    """Names among ``known`` (with their roles) that ``match`` means; ``where`` is said if there are none."""
    if match.startswith("role:"):
        terms = parse_roles(match)
        found = [
            name for name, has in known.items() if all((role in has) == wanted for wanted, role in terms)
        ]
        if not found:
            raise UsageError(_without(known, match, terms, where))
        return found
    pattern = compile_pattern(match)
    paths = {name: _paths(name) for name in known}
    found = [name for name, all_of in paths.items() if match in all_of or any(map(pattern.fullmatch, all_of))]
    if not found:
        shortest = dict.fromkeys(path for name in known for path in reversed(_paths(bare(name))))
        raise UsageError(f"no tensor of {where} matches {match!r}: {choices_hint(match, shortest)}")
    return found


def _paths(name: str) -> list[str]:
    """The name, with and without wrappers, and those of the modules it is in."""
    out: dict[str, None] = {}
    for whole in (name, bare(name)):
        parts = whole.split(".")
        out.update(dict.fromkeys(".".join(parts[:end]) for end in range(len(parts), 0, -1)))
    return list(out)


def _without(
    known: Mapping[str, frozenset[str]], match: str, terms: tuple[tuple[bool, str], ...], where: str
) -> str:
    there = sorted(set().union(*known.values()), key=_numbered)
    missing = [role for wanted, role in terms if wanted and role not in there]
    if not missing:
        return f"no tensor of {where} has all of {match!r}, though each role is there; leave one out"
    key = missing[0].partition("=")[0]
    same = [role for role in there if role.partition("=")[0] == key and "=" in role]
    return f"no tensor of {where} has the role {missing[0]!r}: {choices_hint('', same or there, most=20)}"


def _numbered(role: str) -> tuple[str, int]:
    key, _, value = role.partition("=")
    return key, int(value or -1)
