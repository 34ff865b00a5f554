"""Shards that do not make up a file, and outputs in the way: one line, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import pytest

from featlens.errors import FeatlensError, UsageError
from featlens.store import FeatureWriter, SiteInfo
from featlens.store.shards import merge, shard_path, shard_rows
from tests.shard_helpers import BLOCK, MANIFEST, SITES, N, debris, flip, write, write_shards


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "teacher.h5"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "one process"
    folder.mkdir()
    return write(folder / "whole.h5")


def refused(out: Path, shards: list[Path], virtual: bool = False) -> str:
    """The line in which the shards are refused, nothing having been written."""
    before = out.read_bytes() if out.exists() else None
    with pytest.raises(FeatlensError) as caught:
        merge(out, shards, virtual=virtual)
    assert (out.read_bytes() if out.exists() else None) == before
    assert debris(out) == []
    line = str(caught.value)
    assert "\n" not in line and ".tmp" not in line
    return line.replace(f"{out.parent}/", "")


# --- shards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("virtual", [False, True])
def test_a_missing_shard_is_named(out: Path, virtual: bool) -> None:
    shards = write_shards(out, 3)
    assert refused(out, [shards[0], shards[2]], virtual) == (
        "teacher.h5: shard 1 of 3 (teacher.shard-1-of-3.h5) is missing; run the extract command again with "
        "3 processes to write it"
    )
    assert "shard 2 of 3 (teacher.shard-2-of-3.h5) is missing" in refused(out, shards[:2], virtual)
    other = out.with_name("all.h5")
    assert "all.h5: shard 2 of 3 (teacher.shard-2-of-3.h5) is" in refused(other, shards[:2], virtual)
    renamed = shards[0].rename(out.with_name("first.h5"))
    assert "shard 1 of 3 (teacher.shard-1-of-3.h5) is missing" in refused(out, [renamed], virtual)
    renamed.rename(shards[0])
    assert "shard 0 of 3 (teacher.shard-0-of-3.h5) is missing" in refused(out, shards[1:], virtual)
    shards[1].unlink()
    assert refused(out, shards) == "teacher.shard-1-of-3.h5: there is no such file or folder; check the path"
    assert "there are no shards to merge (expected teacher.shard-0-of-2.h5" in refused(out, [])


def test_a_shard_of_one_of_more_processes_than_blocks_is_missed_only_if_it_has_rows(out: Path) -> None:
    shards = write_shards(out, 8)
    assert len(shards) == 5
    assert "shard 4 of 8 (teacher.shard-4-of-8.h5) is missing" in refused(out, shards[:4])
    merge(out, shards)


@pytest.mark.parametrize("virtual", [False, True])
def test_an_incomplete_shard_is_named_with_the_rows_that_are_missing(out: Path, virtual: bool) -> None:
    shards = write_shards(out, 2)
    rows = shard_rows(N, BLOCK, 1, 2)
    place = {"index": 1, "count": 2, "first": rows.start, "total": N}
    write(shards[1], rows, place, done=BLOCK)
    assert refused(out, shards, virtual) == (
        "teacher.shard-1-of-2.h5 is incomplete: rows 64..70 of sigma 2 are missing; run the extract command "
        "again to finish it"
    )
    with h5py.File(shards[0], "r+") as file:
        file["rows_done"][:] = 0
        file.attrs["complete"] = 0
    assert "rows 0..48 of sigma 0.5 and of 1 more sigmas are missing" in refused(out, shards, virtual)


def test_a_shard_with_all_rows_whose_writer_was_killed_before_closing_it(out: Path, whole: Path) -> None:
    shards = write_shards(out, 2)
    with h5py.File(shards[1], "r+") as file:
        file.attrs["complete"] = 0
    assert refused(out, shards, virtual=True) == (
        "teacher.shard-1-of-2.h5 has all its rows but was never closed, as --virtual needs; run the extract "
        "command again to finish it, or merge without --virtual"
    )
    merge(out, shards)
    assert out.read_bytes() == whole.read_bytes()


def test_a_shard_that_is_still_written_is_refused(out: Path) -> None:
    shards = write_shards(out, 2)
    with FeatureWriter.resume(shards[1], json.loads(h5py.File(shards[1]).attrs["manifest"])):
        assert "teacher.shard-1-of-2.h5 is " in refused(out, shards)


def test_a_damaged_shard_is_named_with_site_and_rows_before_the_file_appears(out: Path) -> None:
    shards = write_shards(out, 2)
    flip(shards[1], "dec#0", (1, 16, 0))
    line = refused(out, shards)
    assert line.startswith("teacher.shard-1-of-2.h5: site 'dec#0', sigma 2, rows 16..22 are damaged")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"manifest": {**MANIFEST, "weights_digest": "other"}}, "weights_digest: 'other', 'w'"),
        ({"sigmas": [0.5, 3.0]}, "sigmas [0.5, 3.0], [0.5, 2.0]"),
        ({"sites": [SITES[0], SITES[2]]}, "site 'enc.same' differs"),
        ({"sites": [*SITES[:2], SiteInfo("dec#0", 2, 3, channels=4)]}, "site 'dec#0' differs"),
        ({"dtype": "float16"}, "features of type float16, float32"),
        ({"labels": None}, "only one of them has labels"),
        ({"total": N + 1}, "71 rows in 2 shards, 70 rows in 2 shards"),
        ({"count": 3}, "70 rows in 3 shards, 70 rows in 2 shards"),
    ],
)
def test_shards_of_different_wholes_are_refused_with_the_difference(out: Path, change, said) -> None:
    shards = write_shards(out, 2)
    rows = shard_rows(N, BLOCK, 1, 2)
    place = {"index": 1, "count": 2, "first": rows.start, "total": N}
    place |= {key: change.pop(key) for key in ("total", "count") if key in change}
    if "manifest" in change:
        change["manifest"] = {**change["manifest"], "shard": place}
    write(shards[1], rows, place, **change)
    assert refused(out, shards) == (
        "teacher.shard-1-of-2.h5 and teacher.shard-0-of-2.h5 are not parts of one file "
        f"({said}); extract both again with the same settings"
    )


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (None, "is not a shard (its manifest has no 'shard' with index, count, first, total)"),
        ({"index": 1, "count": 2, "first": 48}, "is not a shard"),
        ({"index": 1, "count": 2, "first": "48", "total": 70}, "is not a shard"),
        ({"index": 2, "count": 2, "first": 48, "total": 70}, "is damaged: shard 2 of 2"),
        ({"index": 1, "count": 2, "first": -1, "total": 70}, "is damaged: shard 1 of 2 with rows -1..21"),
        ({"index": 1, "count": 2, "first": 49, "total": 70}, "is damaged: shard 1 of 2 with rows 49..71"),
        ({"index": 1, "count": 2, "first": 32, "total": 70}, "rows 32..48 are in two shards"),
        ({"index": 0, "count": 2, "first": 48, "total": 70}, "are both shard 0 of 2; give each only once"),
    ],
)
def test_shards_whose_place_makes_no_sense_are_refused(out: Path, place, said) -> None:
    shards = write_shards(out, 2)
    write(shards[1], shard_rows(N, BLOCK, 1, 2), place)
    assert said in refused(out, shards)


def test_shards_with_a_gap_between_them_are_refused(out: Path) -> None:
    rows = [slice(0, 32), slice(48, 70)]
    shards = [
        write(
            shard_path(out, index, 2), rows[index], {"index": index, "count": 2, "first": first, "total": N}
        )
        for index, first in enumerate((0, 48))
    ]
    assert "rows 32..48 are in no shard" in refused(out, shards)


def test_a_shard_of_broken_blocks_is_refused(out: Path) -> None:
    rows = [slice(0, 40), slice(40, 70)]
    shards = []
    for index in range(2):
        place = {"index": index, "count": 2, "first": rows[index].start, "total": N}
        shards.append(write(shard_path(out, index, 2), rows[index], place))
    assert "40 rows are not whole blocks of 16" in refused(out, shards)


# --- an output that is there --------------------------------------------------------------------------------


def test_a_complete_file_of_the_same_content_is_used_as_it_is(out: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards)
    before = out.stat()
    merge(out, shards)
    assert (out.stat().st_mtime_ns, out.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    # Whoever is stopped while removing the shards can say the same again.
    shards[0].unlink()
    assert merge(out, shards[1:]) == out
    assert merge(out, []) == out


def test_any_other_file_is_replaced_only_by_force(out: Path, whole: Path) -> None:
    shards = write_shards(out, 2)
    advice = "choose another output, remove it, or replace it with --force"
    write(out, manifest={**MANIFEST, "weights_digest": "other"})
    assert refused(out, shards) == f"teacher.h5 is there and holds something else; {advice}"
    write(out, done=16)
    assert refused(out, shards) == f"teacher.h5 is there and is incomplete; {advice}"
    out.write_text("notes")
    assert refused(out, shards).endswith(f"; {advice}")
    merge(out, shards, force=True)
    assert out.read_bytes() == whole.read_bytes()


def test_a_shard_is_never_the_output(out: Path) -> None:
    shards = write_shards(out, 2)
    with pytest.raises(UsageError, match="is one of the shards; the output comes first"):
        merge(shards[0], shards, force=True)
