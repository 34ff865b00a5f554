"""Where in a network a tensor is, read from its name: the naming families that featlens knows.

A family gives, for each tensor, the roles of its place and the block it belongs to. Blocks are numbered in
order of execution, which need not be the order of definition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featlens.weights.rules import bare

__all__ = ["Place", "places"]

_COMMON = (
    (
        re.compile(r"(map_|time_|t_embed|y_embed|class_embed|label_emb|noise_embed|add_embedding)"),
        "noise_embedding",
    ),
    (re.compile(r"(conv_in|x_embed|(enc\.)?patch|img_in|pos_embed)"), "in"),
    (
        re.compile(r"(conv_norm_out|conv_out|out_norm|out_conv|norm_out|proj_out|final|unpatch|dec\.out\.)"),
        "out",
    ),
    (re.compile(r"head(_[a-z]+)?\."), "head"),
    (re.compile(r"(encoder|enc|down_blocks)\."), "encoder"),
    (re.compile(r"(decoder|dec|up_blocks)\."), "decoder"),
    (re.compile(r"(mid_block|middle_block|mid|middle|bottleneck)\."), "bottleneck"),
)
"""Roles by the beginning of a name, in every family; the first that fits counts."""

_EDM = re.compile(r"(?P<side>enc|dec)\.(?P<size>\d+)x\d+_(?P<kind>[a-z]+)\d*(_\w+)?\.")
_DIFFUSERS = re.compile(
    r"(?P<part>down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(?P<kind>[a-z]+)\.(?P<index>\d+)\."
)
_TOKENS = re.compile(r"((transformer_)?blocks\.|(?P<half>enc|dec)\.block)(?P<index>\d+)\.")

_Key = tuple[int, ...]


@dataclass
class Place:
    """Roles of one tensor's place, and the key that orders its block among all (None outside of blocks)."""

    roles: set[str]
    block: _Key | None = None


def places(names: Iterable[str], settings: Mapping[str, Any] | None = None) -> dict[str, Place]:
    """Place of each tensor by its name.

    Parameters
    ----------
    names
        Names of a network's tensors, wrapped or not.
    settings
        ``sample_size`` of a diffusers network, by which its blocks get a resolution.
    """
    known = {name: bare(name) for name in names}
    found = {name: Place(_common(inner)) for name, inner in known.items()}
    _edm(known, found)
    _diffusers(known, found, (settings or {}).get("sample_size"))
    _tokens(known, found)
    order = sorted({place.block for place in found.values() if place.block is not None})
    position = {key: index for index, key in enumerate(order)}
    for place in found.values():
        if place.block is not None:
            index = position[place.block]
            place.roles |= {f"block={index}", f"depth={3 * index // len(order)}"}
    return found


def _common(inner: str) -> set[str]:
    return next(({role} for pattern, role in _COMMON if pattern.match(inner)), set())


def _tokens(known: Mapping[str, str], found: Mapping[str, Place]) -> None:
    """Names of transformers: ``enc.block0``, ``blocks.3``; the first half, rounded up, is the encoder."""
    matches = {name: match for name, inner in known.items() if (match := _TOKENS.match(inner))}
    if not matches:
        return
    # What ends in a head has no second half: a ratio network, or a classifier.
    whole = any("out" in place.roles for place in found.values())
    half = (max(int(match["index"]) for match in matches.values()) + 2) // 2
    for name, match in matches.items():
        index = int(match["index"])
        found[name].block = (index,)
        if match["half"] is None:
            found[name].roles |= {"decoder" if whole and index >= half else "encoder"}
    for place in found.values():
        if place.roles in ({"in"}, {"out"}):
            place.roles |= {"encoder" if "in" in place.roles else "decoder"}


def _edm(known: Mapping[str, str], found: Mapping[str, Place]) -> None:
    """Names of the EDM and ADM U-Nets: ``enc.16x16_block0``, ``dec.8x8_in1``, ``out_conv``."""
    blocks: dict[str, int] = {}
    sizes: list[int] = []
    for name, inner in known.items():
        match = _EDM.match(inner)
        if match is None:
            continue
        place, encoder, kind, size = found[name], match["side"] == "enc", match["kind"], int(match["size"])
        place.roles = {"encoder" if encoder else "decoder", f"resolution={size}"}
        sizes.append(size)
        if encoder and kind == "conv":
            place.roles.add("in")
        elif not encoder and kind == "aux":
            place.roles.add("out")
        else:
            if kind == "in":
                place.roles.add("bottleneck")
            place.block = (0 if encoder else 1, blocks.setdefault(match[0], len(blocks)))
    if sizes:
        for place in found.values():
            if place.roles == {"out"}:
                place.roles = {"out", "decoder", f"resolution={max(sizes)}"}


def _diffusers(known: Mapping[str, str], found: Mapping[str, Place], size: object) -> None:
    """Names of diffusers' ``UNet2DModel``: ``down_blocks.0.resnets.1``, ``mid_block``, ``up_blocks.3``."""
    matches = {name: match for name, inner in known.items() if (match := _DIFFUSERS.match(inner))}
    if not matches:
        return
    finest = max(size) if isinstance(size, (list, tuple)) and size else size
    resampled = {match["part"] for match in matches.values() if match["kind"].endswith("samplers")}
    halvings = sum(part.startswith("down") for part in resampled)
    for name, match in matches.items():
        place, part, kind = found[name], match["part"], match["kind"]
        number = int(part.rpartition(".")[2]) if "." in part else 0
        before = sum(f"{part.partition('.')[0]}.{other}" in resampled for other in range(number))
        sampler = kind.endswith("samplers")
        last = 999 if sampler else int(match["index"])
        # A resampler belongs to the resolution that it brings about, as in EDM's names.
        if part.startswith("down"):
            place.roles, place.block, level = {"encoder"}, (0, number, last), before + sampler
        elif part == "mid_block":
            place.roles, place.block, level = {"decoder", "bottleneck"}, (1, 0, 0), halvings
        else:
            place.roles, place.block, level = {"decoder"}, (2, number, last), halvings - before - sampler
        if isinstance(finest, int):
            place.roles.add(f"resolution={finest >> level}")
    for place in found.values():
        if place.roles in ({"in"}, {"out"}):
            place.roles |= {"encoder" if "in" in place.roles else "decoder"}
            place.roles |= {f"resolution={finest}"} if isinstance(finest, int) else set()
