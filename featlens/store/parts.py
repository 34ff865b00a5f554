"""Open shards of a feature file, and whether they belong together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import StoreError
from featlens.store.copying import stored_form
from featlens.store.reader import FeatureStore

__all__ = ["Shard", "block_of", "gathered", "opened", "require_complete", "require_same_request"]


@dataclass(frozen=True)
class Shard:
    """An open shard and its place in the whole."""

    store: FeatureStore
    index: int
    count: int
    first: int
    total: int

    @property
    def manifest(self) -> dict[str, Any]:
        """What the manifest of the whole file says."""
        return {key: value for key, value in self.store.manifest.items() if key not in ("shard", "creator")}

    @property
    def creator(self) -> str:
        """What made the features, which merging does not change."""
        return str(self.store.manifest.get("creator", ""))

    @property
    def rows(self) -> slice:
        """Rows of the whole file."""
        return slice(self.first, self.first + len(self.store))


@contextlib.contextmanager
def opened(paths: Sequence[Path]) -> Iterator[list[Shard]]:
    """Shards in the order of their rows, open inside the block."""
    with contextlib.ExitStack() as stack:
        parts = [_place(stack.enter_context(FeatureStore(path))) for path in paths]
        yield sorted(parts, key=lambda part: (part.first, part.index))


def _place(store: FeatureStore) -> Shard:
    told = store.manifest.get("shard")
    keys = ("index", "count", "first", "total")
    if not isinstance(told, dict) or not all(type(told.get(key)) is int for key in keys):
        raise StoreError(
            f"{store.path} is not a shard (its manifest has no 'shard' with {', '.join(keys)}); give only "
            "files that 'featlens extract' wrote in several processes"
        )
    part = Shard(store, *(told[key] for key in keys))
    if not (0 <= part.index < part.count and part.first >= 0 and part.rows.stop <= part.total):
        raise StoreError(
            f"{store.path} is damaged: shard {part.index} of {part.count} with rows {part.first}.."
            f"{part.rows.stop} of {part.total}; extract it again"
        )
    return part


def require_same_request(parts: Sequence[Shard]) -> None:
    """Refuse shards that are not parts of the same whole."""
    head = parts[0]
    seen: dict[int, Path] = {}
    for part in parts:
        difference = _difference(part, head)
        if difference:
            raise StoreError(
                f"{part.store.path} and {head.store.path} are not parts of one file ({difference}); extract "
                "both again with the same settings"
            )
        if part.index in seen:
            raise StoreError(
                f"{part.store.path} and {seen[part.index]} are both shard {part.index} of {part.count}; give "
                "each only once"
            )
        seen[part.index] = part.store.path


def _difference(one: Shard, two: Shard) -> str:
    """What makes the two parts of different files; empty if nothing does."""
    if (one.count, one.total) != (two.count, two.total):
        return f"{one.total} rows in {one.count} shards, {two.total} rows in {two.count} shards"
    key = _differing_key(one.manifest, two.manifest)
    if key:
        return f"{key}: {one.manifest.get(key)!r}, {two.manifest.get(key)!r}"
    if not np.array_equal(one.store.sigmas, two.store.sigmas):
        return f"sigmas {one.store.sigmas.tolist()}, {two.store.sigmas.tolist()}"
    site = _differing_key(one.store.sites, two.store.sites)
    if site:
        return f"site {site!r} differs"
    kinds = [stored_form(part.store)[0] for part in (one, two)]
    if kinds[0] != kinds[1]:
        return f"features of type {kinds[0]}, {kinds[1]}"
    if (one.store.labels is None) != (two.store.labels is None):
        return "only one of them has labels"
    return ""


def _differing_key(one: dict[str, Any], two: dict[str, Any]) -> str:
    """First key whose value differs; empty if there is none."""
    return min((key for key in {*one, *two} if one.get(key) != two.get(key)), default="")


def block_of(parts: Sequence[Shard]) -> int:
    """Rows a chunk of the whole file; a shard that is shorter than that has smaller chunks."""
    blocks = [stored_form(part.store)[1] for part in parts]
    known = [block for block in blocks if block is not None]
    if len(known) < len(blocks):
        path = parts[blocks.index(None)].store.path
        raise StoreError(f"{path} is not chunked as featlens writes it; extract it again")
    return max(known)


def require_complete(part: Shard) -> None:
    """Refuse a shard with rows that are not valid yet, and name them by their numbers in the whole file."""
    lacking = [index for index, done in enumerate(part.store.rows_done) if done < len(part.store)]
    if lacking:
        first = part.first + int(part.store.rows_done[lacking[0]])
        more = f" and of {len(lacking) - 1} more sigmas" if lacking[1:] else ""
        raise StoreError(
            f"{part.store.path} is incomplete: rows {first}..{part.rows.stop} of sigma "
            f"{part.store.sigmas[lacking[0]]:g}{more} are missing; run the extract command again to finish it"
        )


def gathered(parts: Sequence[Shard]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Ids (N,) and labels (N,) of all rows."""
    ids = np.concatenate([part.store.ids for part in parts])
    labels = [part.store.labels for part in parts if part.store.labels is not None]
    return ids, np.concatenate(labels) if labels else None
