"""Feature files that several processes write: which rows are whose, and one file from all of them.

Each process writes a shard: a whole feature file of a contiguous range of rows, named
``teacher.shard-0-of-2.h5`` beside the ``teacher.h5`` that it will be a part of. Its manifest says which part
under the key ``shard``: ``{"index": 0, "count": 2, "first": 0, "total": 599}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featlens.errors import FeatlensError, StoreError, UsageError
from featlens.files import atomic_path, explain_os_error, lock_file
from featlens.store.copying import copy_tree, raw_rows, site_dataset, stored_form
from featlens.store.lay_down import write_text, write_vector
from featlens.store.open import FileInUse, new_hdf5
from featlens.store.parts import Shard, block_of, gathered, opened, require_complete, require_same_request
from featlens.store.reader import FeatureStore
from featlens.store.writer import FeatureWriter

__all__ = ["find_shards", "is_virtual", "merge", "shard_path", "shard_rows"]

Progress = Callable[[int, int], None]


def shard_path(out: os.PathLike[str] | str, index: int, count: int) -> Path:
    """Path of a shard, beside the file that it is a part of.

    Examples
    --------
    >>> shard_path("teacher.h5", 0, 2).name
    'teacher.shard-0-of-2.h5'
    """
    target = Path(out)
    return target.with_name(f"{target.stem}.shard-{index}-of-{count}{target.suffix}")


def shard_rows(total: int, block: int, index: int, count: int) -> slice:
    """Rows of a shard: contiguous, whole blocks but for the end of the file, every row in exactly one shard.

    With fewer blocks than processes the last shards have no rows. Such a shard is not written, and
    :func:`merge` does not miss it.

    Parameters
    ----------
    total
        Rows of the whole file.
    block
        Rows a chunk of the whole file (:func:`featlens.store.layout.chunk_rows` of all its rows).
    index, count
        Number of the process, from 0, and of processes.

    Examples
    --------
    >>> shard_rows(599, 256, 0, 2), shard_rows(599, 256, 1, 2), shard_rows(100, 256, 1, 2)
    (slice(0, 512, None), slice(512, 599, None), slice(100, 100, None))
    """
    if total < 1 or block < 1 or not 0 <= index < count:
        raise UsageError(
            f"shards: expected rows and blocks of at least 1 and an index below the count, got {total} rows "
            f"in blocks of {block}, shard {index} of {count}"
        )
    each, extra = divmod(-(-total // block), count)
    first = index * each + min(index, extra)
    last = first + each + (index < extra)
    return slice(min(first * block, total), min(last * block, total))


def find_shards(path: os.PathLike[str] | str) -> tuple[Path, list[Path]]:
    """The whole file and the shards of it that are there; ``path`` is the whole file or one shard."""
    given = Path(path)
    named = re.fullmatch(r"(.+)\.shard-\d+-of-\d+", given.stem)
    out = given.with_name(f"{named[1]}{given.suffix}") if named else given
    pattern = re.compile(rf"{re.escape(out.stem)}\.shard-(\d+)-of-(\d+){re.escape(out.suffix)}")
    found: dict[int, list[tuple[int, Path]]] = {}
    with contextlib.suppress(OSError):
        for entry in out.parent.iterdir():
            match = pattern.fullmatch(entry.name)
            if match:
                found.setdefault(int(match[2]), []).append((int(match[1]), entry))
    if len(found) > 1:
        counts = " and ".join(f"{count}" for count in sorted(found))
        raise StoreError(
            f"{out}: there are shards of {counts} processes; remove those that are out of date, or name the "
            "ones to merge"
        )
    return out, [shard for _, shard in sorted(next(iter(found.values()), []))]


def is_virtual(store: FeatureStore) -> bool:
    """Whether the features lie in other files, to which this one refers."""
    return any(site_dataset(store, site).is_virtual for site in store.sites)


def merge(
    out: os.PathLike[str] | str,
    shards: Sequence[os.PathLike[str] | str],
    virtual: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Path of one feature file made of all its shards, equal to the file that a single process writes.

    All shards must be there, complete, and parts of the same whole; whatever is wrong is said before
    anything is written. The file appears whole or not at all, and memory is bounded by one block of rows of
    all sites. The shards stay as they are.

    Parameters
    ----------
    out
        File to write. A complete file of the same content is used as it is; another file is refused.
    shards
        The shards, in any order. Those without rows (fewer blocks than processes) need not exist.
    virtual
        Write a small file that refers to the shards (HDF5 virtual data sets) instead of one that holds the
        features. All shards must lie in its folder, and stay there.
    force
        Replace ``out`` whatever it holds.
    progress
        Called with (rows done, rows in all), counted over all sigmas.
    """
    target = Path(out)
    paths = [Path(shard) for shard in shards]
    if not paths:
        if not virtual and _is_whole(target):
            return target
        raise StoreError(
            f"{target}: there are no shards to merge (expected {shard_path(target, 0, 2).name} and so on)"
        )
    if target.resolve() in {path.resolve() for path in paths}:
        raise UsageError(f"{target} is one of the shards; the output comes first, then the shards")
    with opened(paths) as parts:
        require_same_request(parts)
        if not force and _already_there(target, parts[0], virtual):
            return target
        _require_all(target, parts)
        if virtual:
            _require_referable(target, parts)
            _merge_virtually(target, parts)
        else:
            _merge_rows(target, parts, progress)
    return target


def _is_whole(target: Path) -> bool:
    """Whether there is nothing left to do, because the shards were merged and removed."""
    if not target.exists():
        return False
    with FeatureStore(target) as there:
        return there.complete and not is_virtual(there)


def _already_there(target: Path, part: Shard, virtual: bool) -> bool:
    """Whether ``target`` is what would be made; refuses to replace anything else."""
    if not target.exists():
        return False
    refused = "choose another output, remove it, or replace it with --force"
    try:
        there = FeatureStore(target)
    except FileInUse:
        raise
    except StoreError as error:
        raise StoreError(f"{error}; {refused}") from None
    with there:
        whole = {key: value for key, value in there.manifest.items() if key != "creator"}
        same = (
            whole == part.manifest
            and len(there) == part.total
            and np.array_equal(there.ids[part.rows], part.store.ids)
            and np.array_equal(there.sigmas, part.store.sigmas)
            and list(there.sites.values()) == list(part.store.sites.values())
        )
        if same and there.complete:
            # A file that refers to the shards may become one that holds the features, and back.
            return is_virtual(there) == virtual
        what = "is incomplete" if same else "holds something else"
    raise StoreError(f"{target} is there and {what}; {refused}")


def _require_all(target: Path, parts: Sequence[Shard]) -> None:
    """Refuse shards that lack rows, or hold rows twice."""
    total, block = parts[0].total, block_of(parts)
    there = {part.index for part in parts}
    reached, following = 0, 0
    for part in parts:
        _require_no_gap(target, reached, part.first, None if following in there else following, parts[0])
        reached, following = part.rows.stop, part.index + 1
        if len(part.store) % block and reached != total:
            raise StoreError(
                f"{part.store.path}: {len(part.store)} rows are not whole blocks of {block}; extract all "
                "shards again"
            )
    _require_no_gap(target, reached, total, following if following < parts[0].count else None, parts[0])
    for part in parts:
        require_complete(part)


def _require_no_gap(target: Path, reached: int, first: int, missing: int | None, like: Shard) -> None:
    """Refuse rows that do not begin where the last ended; ``missing`` is the shard between, if one is."""
    if first > reached and missing is not None:
        told, lacking = (f".shard-{index}-of-{like.count}" for index in (like.index, missing))
        name = like.store.path.name.replace(told, lacking)
        if name == like.store.path.name:
            name = shard_path(target, missing, like.count).name
        raise StoreError(
            f"{target}: shard {missing} of {like.count} ({name}) is missing; run the extract command again "
            f"with {like.count} processes to write it"
        )
    if first != reached:
        what = "in no shard" if first > reached else "in two shards"
        low, high = sorted((first, reached))
        raise StoreError(f"{target}: rows {low}..{high} are {what}; extract all shards again")


def _require_referable(target: Path, parts: Sequence[Shard]) -> None:
    for part in parts:
        path = part.store.path
        if not part.store.complete:
            raise StoreError(
                f"{path} has all its rows but was never closed, as --virtual needs; run the extract command "
                "again to finish it, or merge without --virtual"
            )
        if path.resolve().parent != target.resolve().parent or path.is_symlink():
            raise UsageError(
                f"{path} does not lie in the folder of {target}, as --virtual needs; move it there, or merge "
                "without --virtual"
            )
        if "%" in path.name:
            raise UsageError(
                f"{path}: HDF5 reads '%' in the name of a virtual source as a pattern; rename the shards, or "
                "merge without --virtual"
            )


def _merge_rows(target: Path, parts: Sequence[Shard], progress: Progress | None) -> None:
    head = parts[0]
    ids, labels = gathered(parts)
    infos, sigmas = list(head.store.sites.values()), head.store.sigmas.tolist()
    dtype, block = stored_form(head.store)[0].name, block_of(parts)
    with contextlib.ExitStack() as locks, atomic_path(target) as temporary:
        try:
            with FeatureWriter.create(
                temporary,
                infos,
                sigmas,
                ids,
                {**head.manifest, "creator": head.creator},
                labels,
                dtype,
                block,
            ) as writer:
                _append_all(writer, parts, progress)
        except FeatlensError as error:
            # The name of the temporary file means nothing to anybody.
            raise type(error)(str(error).replace(str(temporary), str(target))) from error
        # The writer's lock is gone; without one, another merge would take the file for abandoned.
        lock_file(locks.enter_context(temporary.open("rb")).fileno())


def _append_all(writer: FeatureWriter, parts: Sequence[Shard], progress: Progress | None) -> None:
    total = parts[0].total
    for index in range(len(parts[0].store.sigmas)):
        for part in parts:
            size = len(part.store)
            for start in range(0, size, writer.block):
                stop = min(start + writer.block, size)
                writer.append(
                    index, {site: raw_rows(part.store, site, index, start, stop) for site in writer.names}
                )
                if progress is not None:
                    progress(index * total + part.first + stop, total * len(parts[0].store.sigmas))


def _merge_virtually(target: Path, parts: Sequence[Shard]) -> None:
    head = parts[0]
    ids, labels = gathered(parts)
    plain = {"/sample": ids, "/label": labels, "/rows_done": np.full(len(head.store.sigmas), head.total)}

    def make(group: Any, name: str, old: Any) -> Any:
        place = f"{group.name.rstrip('/')}/{name}"
        values = plain.get(place)
        if values is not None and name == "rows_done":
            return group.create_dataset(name, data=values)
        if values is not None:
            return write_vector(group, name, values)
        if group.name == "/sites" and name in head.store.sites:
            return _virtual_site(group, name, parts)
        return None

    with atomic_path(target) as temporary:
        try:
            with new_hdf5(temporary) as file:
                copy_tree(head.store._file, file, make)
                manifest = {**head.manifest, "creator": head.creator}
                write_text(file, "manifest", json.dumps(manifest))
                file.attrs.modify("complete", np.int64(1))
        except (OSError, RuntimeError) as error:
            raise explain_os_error(
                error if isinstance(error, OSError) else OSError(str(error)), target
            ) from error


def _virtual_site(group: Any, name: str, parts: Sequence[Shard]) -> Any:
    """A dataset (S, N, D) whose rows lie in the shards, which it names relative to its own folder."""
    import h5py

    old = site_dataset(parts[0].store, name)
    layout = h5py.VirtualLayout((old.shape[0], parts[0].total, old.shape[2]), old.dtype)
    for part in parts:
        source = site_dataset(part.store, name)
        layout[:, part.rows, :] = h5py.VirtualSource(part.store.path.name, source.name, source.shape)
    return group.create_virtual_dataset(name, layout, fillvalue=np.nan)
