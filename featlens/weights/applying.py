"""Rules applied to a network: every tensor is set once, and the manifest says from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.weights.manifest import Manifest, TensorOrigin, tensor_digest
from featlens.weights.recipes import interpolated, moments, near_zero, permuted, spectrum, stream, xavier
from featlens.weights.roles import chosen, roles
from featlens.weights.rules import Rule, bare

__all__ = ["apply", "decide"]

_STREAMS = {"permuted": "permute"}
"""Names of streams that are not those of their recipes: older results were drawn from them."""

_RECIPES = {"permuted": permuted, "moments": moments, "spectrum": spectrum}


def decide(module: nn.Module, rules: Sequence[Rule]) -> dict[str, Rule | None]:
    """Rule that counts for each tensor of ``module``, None where none does: the last that matches.

    Raises
    ------
    UsageError
        If a rule matches nothing, or two names of one shared tensor have different rules.
    """
    known = roles(module)
    where = f"the network {type(module).__name__}"
    out: dict[str, Rule | None] = dict.fromkeys(known)
    for rule in rules:
        out.update(dict.fromkeys(chosen(known, rule.match, where), rule))
    shared: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in module.state_dict().items():
        if name not in out or not tensor.numel():
            continue
        first = shared.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.stride()), name)
        if out[first] != out[name]:
            raise UsageError(
                f"{first!r} and {name!r} are one shared tensor, but different rules decide on them; "
                "let one rule match both"
            )
    return out


def apply(
    module: nn.Module,
    rules: Sequence[Rule],
    sources: Mapping[str, Mapping[str, Tensor]] | None = None,
    seed: int = 0,
    default: str = "random",
) -> Manifest:
    """Set the tensors of ``module`` in place as ``rules`` say; returns where each came from.

    Parameters
    ----------
    module
        Any network. What is "random" is what it holds now: build it with the seed you want.
    rules
        In order; of several that match a tensor the last counts.
    sources
        State dicts by name. A tensor is looked up by its own name, or by that name without what wraps the
        networks (``network.enc.8x8_conv.weight`` and ``enc.8x8_conv.weight`` are the same).
    seed
        Of what the recipes draw: each tensor has a stream of its own, so that a rule on one tensor never
        changes another.
    default
        For tensors that no rule names: ``"random"`` or ``"teacher"``.

    Raises
    ------
    UsageError
        If a rule matches nothing.
    FeatlensError
        If a source is not there, lacks a tensor, has it in another shape, or holds values that are not
        finite. The module is then as it was.

    Examples
    --------
    >>> import torch
    >>> student, teacher = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> manifest = apply(student, [Rule("weight", "teacher")], {"teacher": teacher.state_dict()})
    >>> manifest.counts(), torch.equal(student.weight, teacher.weight)
    ({'teacher': 1, 'random': 1}, True)
    """
    if default not in ("random", "teacher"):
        hint = choices_hint(default, ["random", "teacher"])
        raise UsageError(f"unknown default {default!r} for tensors that no rule names: {hint}")
    start = [Rule("**", "teacher")] if default == "teacher" else []
    plan = decide(module, [*start, *rules])
    own = module.state_dict()
    indexed = {name: _Source(name, tensors) for name, tensors in (sources or {}).items()}
    new: dict[str, Tensor] = {}
    described: dict[str, TensorOrigin] = {}
    for name, rule in plan.items():
        if rule is None:
            described[name] = TensorOrigin("random", "")
        elif rule.reads is None:
            new[name], origin = _drawn(rule, own[name], seed, name)
            described[name] = TensorOrigin(origin, "", rule.match)
        else:
            read = _read(indexed, rule.reads, name, own[name])
            new[name] = _made(rule, own[name], read, seed, name)
            described[name] = TensorOrigin(rule.origin, "", rule.match, rule.reads, tensor_digest(read))
    module.load_state_dict({**own, **new})
    held = module.state_dict()
    # Of what the module holds now, in its own precision.
    return Manifest(
        seed, {name: replace(entry, digest=tensor_digest(held[name])) for name, entry in described.items()}
    )


def _drawn(rule: Rule, own: Tensor, seed: int, name: str) -> tuple[Tensor, str]:
    """Tensor and its origin where no source is read."""
    if rule.take == "no_zero" and name.endswith("weight") and near_zero(own):
        return xavier(own, stream(seed, "no_zero", name)), rule.origin
    return own, "random"


def _made(rule: Rule, own: Tensor, read: Tensor, seed: int, name: str) -> Tensor:
    """Tensor made of what was read."""
    if rule.take in _RECIPES:
        return _RECIPES[rule.take](read, stream(seed, _STREAMS.get(rule.take, rule.take), name))
    if rule.amount is not None:
        return interpolated(own, read, rule.amount)
    return read


class _Source:
    """Tensors of one source, found by their names with or without wrappers."""

    def __init__(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        self.name, self.tensors = name, tensors
        self.bare: dict[str, list[str]] = {}
        for key in tensors:
            self.bare.setdefault(bare(key), []).append(key)

    def find(self, name: str) -> Tensor | None:
        if name in self.tensors:
            return self.tensors[name]
        keys = self.bare.get(bare(name), [])
        return self.tensors[keys[0]] if len(keys) == 1 else None


def _read(sources: Mapping[str, _Source], source: str, name: str, own: Tensor) -> Tensor:
    if source not in sources:
        raise FeatlensError(
            f"initialisation needs the weights of {source!r}, which were not given; "
            f"train it first, or give its state dict under that name"
        )
    there = sources[source]
    found = there.find(name)
    if found is None:
        raise FeatlensError(
            f"the weights of {source!r} are of another architecture: they hold no {name!r}; "
            f"{choices_hint(name, there.tensors)}"
        )
    if found.shape != own.shape:
        raise FeatlensError(
            f"the weights of {source!r} are of another architecture: expected {name!r} of shape "
            f"{tuple(own.shape)}, got {tuple(found.shape)}; use networks of the same settings, or leave that "
            "tensor to another rule"
        )
    if found.is_floating_point() and not bool(torch.isfinite(found).all()):
        raise FeatlensError(
            f"the weights of {source!r} hold values of {name!r} that are not finite; "
            "take an earlier snapshot of it"
        )
    return found.detach()
