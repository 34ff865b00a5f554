"""Rules: which tensors of a network, and where their values come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from featlens.errors import UsageError, choices_hint
from featlens.names import compile_pattern

__all__ = ["KEYS", "NEEDS_SOURCE", "TAKES", "WORDS", "Rule", "bare", "parse_roles", "sources_of"]

TAKES = ("teacher", "copy", "random", "no_zero", "permuted", "moments", "spectrum", "interpolate")
"""What a rule can do with a tensor."""

NEEDS_SOURCE = ("teacher", "copy", "permuted", "moments", "spectrum", "interpolate")
"""Of these, what reads another network's tensor."""

WORDS = (
    "encoder",
    "decoder",
    "bottleneck",
    "in",
    "out",
    "head",
    "noise_embedding",
    "conv",
    "norm",
    "attention",
    "embedding",
    "linear",
    "other",
)
"""Roles without a number."""

KEYS = ("resolution", "depth", "block")
"""Roles with a number, such as ``resolution=16``."""

WRAPPERS = ("_orig_mod", "module", "network", "denoiser", "model", "net", "unet")
"""First parts of a name that say how a network is wrapped, not where in it a tensor is."""


def bare(name: str) -> str:
    """Name of a tensor inside the innermost network, without the names of wrappers around it.

    >>> bare("network.enc.8x8_conv.weight"), bare("module._orig_mod.model.out.bias")
    ('enc.8x8_conv.weight', 'out.bias')
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while len(parts) > 2 and parts[0] in WRAPPERS:
        parts.pop(0)
    return ".".join(parts)


def parse_roles(match: str) -> tuple[tuple[bool, str], ...]:
    """Terms of ``role:a+!b`` as (wanted, role); a role nobody knows is an error.

    >>> parse_roles("role:decoder+!norm+resolution=16")
    ((True, 'decoder'), (False, 'norm'), (True, 'resolution=16'))
    """
    terms = []
    for term in match.removeprefix("role:").split("+"):
        wanted, role = not term.strip().startswith("!"), term.strip().removeprefix("!").strip()
        key, equals, value = role.partition("=")
        if equals and key in KEYS:
            if not re.fullmatch(r"\d{1,6}", value):
                raise UsageError(f"{match!r}: expected a whole number after {key}=, got {value!r}")
            role = f"{key}={int(value)}"
        elif role in KEYS:
            raise UsageError(f"{match!r}: {role} needs a number, such as {role}=0")
        elif role not in WORDS:
            known = [*WORDS, *(f"{key}=" for key in KEYS)]
            raise UsageError(f"unknown role {role!r} in {match!r}: {choices_hint(role, known, most=20)}")
        terms.append((wanted, role))
    return tuple(terms)


@dataclass(frozen=True)
class Rule:
    """Where the tensors that ``match`` names come from.

    Attributes
    ----------
    match
        A glob over names of tensors or of modules, which stand for all their tensors (``*`` within one
        level of the name, ``**`` across levels); ``re:`` and a regular expression; or ``role:`` and one or
        more of :data:`WORDS` and :data:`KEYS` joined by ``+``, each of which must hold (``!`` negates). Names
        may leave out what wraps the network: ``enc.8x8_conv`` also means ``network.enc.8x8_conv``.
    take
        ``"teacher"``: the tensor of the source ``"teacher"``; ``"copy"``: that of ``source``; ``"random"``:
        what the network holds already; ``"no_zero"``: the same, but weights that start near zero are drawn
        with the usual spread; ``"permuted"``, ``"moments"``, ``"spectrum"``: from the source, by the recipe
        of that name; ``"interpolate"``: (1 - amount) x random + amount x source.
    amount
        Share of the source, 0 to 1; of ``"interpolate"`` alone.
    source
        Name of a source or path of a snapshot; ``"teacher"`` where not given.

    Examples
    --------
    >>> Rule("role:decoder+conv", "interpolate", amount=0.5)
    Rule(match='role:decoder+conv', take='interpolate', amount=0.5, source=None)
    """

    match: str
    take: str
    amount: float | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.take not in TAKES:
            hint = choices_hint(self.take, TAKES)
            raise UsageError(f"rule {self.match!r}: unknown take {self.take!r}: {hint}")
        if not self.match.strip():
            raise UsageError(
                "a rule matches '': expected a glob, re:REGEX or role:ROLE; '**' means every tensor"
            )
        if self.match.startswith("role:"):
            parse_roles(self.match)
        else:
            compile_pattern(self.match)
        self._check_amount()
        if self.take == "copy" and not self.source:
            raise UsageError(
                f"rule {self.match!r}: take = 'copy' needs a source, the name of a trained network or the "
                "path of a snapshot"
            )
        if self.source is not None and self.take not in NEEDS_SOURCE[1:]:
            raise UsageError(
                f"rule {self.match!r}: take = {self.take!r} reads no source, got source = {self.source!r}; "
                "leave it out, or take 'copy'"
            )

    def _check_amount(self) -> None:
        if self.take != "interpolate":
            if self.amount is not None:
                raise UsageError(
                    f"rule {self.match!r}: amount = {self.amount} belongs to take = 'interpolate', "
                    f"got {self.take!r}; leave it out"
                )
        elif self.amount is None or not 0 <= self.amount <= 1:
            raise UsageError(
                f"rule {self.match!r}: expected amount, the source's share, from 0 to 1, got {self.amount}"
            )

    @property
    def origin(self) -> str:
        """What is said of a tensor that this rule sets."""
        read = self.reads
        if read is None:
            return "random" if self.take == "random" else "random, not near zero"
        if self.take in ("teacher", "copy"):
            return read
        return f"{read}, interpolated {self.amount:g}" if self.amount is not None else f"{read}, {self.take}"

    @property
    def reads(self) -> str | None:
        """Name or path of the source whose tensors this rule reads, None if it reads none."""
        return (self.source or "teacher") if self.take in NEEDS_SOURCE else None


def sources_of(rules: Sequence[Rule]) -> frozenset[str]:
    """Names and paths of all sources that ``rules`` read.

    >>> sorted(sources_of([Rule("role:encoder", "teacher"), Rule("role:out", "random")]))
    ['teacher']
    """
    return frozenset(rule.reads for rule in rules if rule.reads is not None)
