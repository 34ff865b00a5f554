"""Shards: every row in exactly one, and the merged file is the file that one process writes."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import StoreError, UsageError
from featlens.store import FeatureStore, FeatureWriter
from featlens.store.shards import find_shards, merge, shard_path, shard_rows
from tests.shard_helpers import BLOCK, SITES, N, debris, dump, write, write_shards


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "teacher.h5"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "one process"
    folder.mkdir()
    return write(folder / "whole.h5")


# --- rows ---------------------------------------------------------------------------------------------------


@given(total=st.integers(1, 3000), block=st.integers(1, 400), count=st.integers(1, 20))
def test_every_row_is_in_exactly_one_shard_and_shards_are_whole_blocks(total, block, count) -> None:
    shards = [shard_rows(total, block, index, count) for index in range(count)]
    assert [row for rows in shards for row in range(rows.start, rows.stop)] == list(range(total))
    assert all(rows.start % block == 0 or rows.start == rows.stop for rows in shards)
    blocks = [-(-(rows.stop - rows.start) // block) for rows in shards]
    assert max(blocks) - min(blocks) <= 1
    assert blocks == sorted(blocks, reverse=True), "the first shard is the last to be without rows"


@pytest.mark.parametrize("place", [(0, 1, 0, 1), (1, 0, 0, 1), (5, 2, 1, 1), (5, 2, -1, 2), (5, 2, 0, 0)])
def test_impossible_places_are_refused(place) -> None:
    with pytest.raises(UsageError, match="index below the count"):
        shard_rows(*place)


def test_shards_lie_beside_the_file_and_are_found_from_it_or_from_each_other(out: Path) -> None:
    assert shard_path(out, 1, 2) == out.with_name("teacher.shard-1-of-2.h5")
    assert shard_path("runs/a.b", 0, 12) == Path("runs/a.shard-0-of-12.b")
    for name in ("teacher2.shard-0-of-2.h5", "teacher.shard-0-of-2.nc", "xteacher.shard-0-of-2.h5"):
        out.with_name(name).touch()
    assert find_shards(out) == (out, [])
    paths = [shard_path(out, index, 12) for index in range(12)]
    for path in reversed(paths):
        path.touch()
    assert find_shards(out) == find_shards(paths[3]) == (out, paths)
    shard_path(out, 0, 2).touch()
    with pytest.raises(StoreError, match="there are shards of 2 and 12 processes; remove those"):
        find_shards(out)
    assert find_shards(out.parent / "nowhere" / "a.h5")[1] == []


# --- merged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_merged_file_is_the_file_of_one_process_byte_for_byte(out: Path, whole: Path, count: int) -> None:
    shards = write_shards(out, count)
    assert len(shards) == min(count, 5)
    kept = [path.read_bytes() for path in shards]
    assert merge(out, shards[::-1]) == out
    assert dump(out) == dump(whole)
    assert out.read_bytes() == whole.read_bytes()
    assert [path.read_bytes() for path in shards] == kept
    assert debris(out) == []


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"labels": None}, {"sites": SITES[::2]}])
def test_half_precision_and_files_without_labels_or_shared_sites(out: Path, tmp_path: Path, change) -> None:
    merge(out, write_shards(out, 2, **change))
    whole = write(tmp_path / "whole.h5", **change)
    assert dump(out) == dump(whole)


def test_sites_with_the_same_features_stay_one_dataset(out: Path) -> None:
    merge(out, write_shards(out, 2))
    with h5py.File(out) as file:
        assert file["sites/enc.conv"] == file["sites/enc.same"] != file["sites/dec#0"]
    with FeatureStore(out) as store:
        assert list(store.sites.values()) == SITES


def test_rows_are_read_in_blocks(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, sizes = write_shards(out, 2), []
    append = FeatureWriter.append

    def told(writer: FeatureWriter, index: int, block: dict[str, np.ndarray]) -> None:
        sizes.extend(map(len, block.values()))
        append(writer, index, block)

    monkeypatch.setattr(FeatureWriter, "append", told)
    seen: list[tuple[int, int]] = []
    merge(out, shards, progress=lambda done, total: seen.append((done, total)))
    assert set(sizes) == {BLOCK, N % BLOCK}
    assert seen[-1] == (N * 2, N * 2)
    assert seen == sorted(seen)


def test_shards_of_different_versions_of_featlens_are_merged(out: Path) -> None:
    shards = write_shards(out, 2)
    with h5py.File(shards[1], "r+") as file:
        manifest = json.loads(file.attrs["manifest"])
        file.attrs["manifest"] = json.dumps({**manifest, "creator": "featlens 0.0.1"})
    merge(out, shards)
