"""Shards: every row in exactly one, and the merged file is the file that one process writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import FeatlensError, StoreError, UsageError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.shards import find_shards, is_virtual, merge, shard_path, shard_rows

N, BLOCK = 70, 16
SIGMAS = [0.5, 2.0]
SITES = [
    SiteInfo("enc.conv", 0, 5, channels=5, resolution=8, reducer="gap", kind="Conv2d"),
    SiteInfo("enc.same", 1, 5, channels=5, resolution=8, reducer="gap", kind="Identity", same_as="enc.conv"),
    SiteInfo("dec#0", 2, 3, channels=3, reducer="gap", kind="Linear"),
]
MANIFEST = {"model": "m", "weights_digest": "w", "sample_digest": "d"}


def features(site: str, index: int, rows: slice, dtype: str = "float32") -> np.ndarray:
    """Every number is a function of its place alone."""
    width = {"enc.conv": 5, "dec#0": 3}[site]
    numbers = np.arange(rows.start, rows.stop)[:, None] * 7 + np.arange(width) * (index + 1)
    return np.sqrt(numbers).astype(dtype)


def write(path: Path, rows: slice = slice(0, N), shard: Any = None, done: int | None = None, **changed: Any):
    """A file of these rows, as ``extract`` writes it; ``done`` rows of the last sigma only."""
    options: dict[str, Any] = {
        "sites": SITES,
        "sigmas": SIGMAS,
        "ids": np.arange(100, 100 + N)[rows],
        "manifest": MANIFEST if shard is None else {**MANIFEST, "shard": shard},
        "labels": (np.arange(N) % 3)[rows],
        "block": BLOCK,
        **changed,
    }
    dtype = options.get("dtype", "float32")
    with FeatureWriter.create(path, **options) as writer:
        for index in range(len(options["sigmas"])):
            stop = rows.stop if done is None or index == 0 else rows.start + done
            if stop > rows.start:
                block = slice(rows.start, stop)
                writer.append(index, {name: features(name, index, block, dtype) for name in writer.names})
    return path


def write_shards(out: Path, count: int, **changed: Any) -> list[Path]:
    found = []
    for index in range(count):
        rows = shard_rows(N, BLOCK, index, count)
        if rows.start < rows.stop:
            place = {"index": index, "count": count, "first": rows.start, "total": N}
            found.append(write(shard_path(out, index, count), rows, place, **changed))
    return found


def dump(path: Path) -> dict[str, Any]:
    """Everything in a file: values, types, layout, attributes, scales, and which names are one object."""
    found: dict[str, Any] = {}
    names: dict[int, str] = {}

    def attributes(thing: Any) -> dict[str, Any]:
        skip = ("REFERENCE_LIST", "DIMENSION_LIST")
        return {key: (str(value), type(value)) for key, value in thing.attrs.items() if key not in skip}

    def visit(group: Any, prefix: str) -> None:
        for name in group:
            thing, place = group[name], f"{prefix}/{name}"
            first = names.setdefault(h5py.h5o.get_info(thing.id).addr, place)
            entry: dict[str, Any] = {"first": first, "attrs": attributes(thing)}
            if isinstance(thing, h5py.Dataset):
                plan = thing.id.get_create_plist()
                entry |= {
                    "dtype": thing.dtype,
                    "shape": thing.shape,
                    "chunks": thing.chunks,
                    "filters": [plan.get_filter(number)[:3] for number in range(plan.get_nfilters())],
                    "fill": str(thing.fillvalue),
                    "scales": [[scale.name for scale in axis.values()] for axis in thing.dims],
                    "bytes": thing[()].tobytes(),
                }
            found[place] = entry
            if isinstance(thing, h5py.Group) and first == place:
                visit(thing, place)

    with h5py.File(path) as file:
        found["/"] = attributes(file)
        visit(file, "")
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "teacher.h5"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "one process"
    folder.mkdir()
    return write(folder / "whole.h5")


def debris(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


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


# --- virtual ------------------------------------------------------------------------------------------------


def test_a_virtual_file_reads_as_the_merged_one_and_holds_no_features(
    out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    monkeypatch.chdir("/")
    virtual, real = dump(out), dump(whole)
    for name, entry in virtual.items():
        if name != "/":
            only = {"chunks", "filters"} if entry["attrs"].get("order") else set()
            assert {key: entry[key] for key in entry.keys() - only} == {
                key: real[name][key] for key in entry.keys() - only
            }
    assert virtual["/"] == real["/"]
    assert virtual.keys() == real.keys()
    with FeatureStore(out) as store, FeatureStore(whole) as expected:
        assert is_virtual(store) and not is_virtual(expected)
        assert store.complete and store.manifest == expected.manifest
        assert store.sites == expected.sites
        for site in store.sites:
            for sigma in SIGMAS:
                assert np.array_equal(store.read(site, sigma), expected.read(site, sigma))
    with h5py.File(out) as file:
        assert {source.file_name for source in file["sites/dec#0"].virtual_sources()} == {
            path.name for path in shards
        }


def test_a_virtual_file_is_labelled_netcdf_and_moves_with_its_shards(out: Path, tmp_path: Path) -> None:
    merge(out, write_shards(out, 3), virtual=True)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in (out, *find_shards(out)[1]):
        path.rename(moved / path.name)
    with xarray.open_dataset(moved / out.name, engine="h5netcdf", group="sites") as data:
        assert data["dec#0"].dims == ("sigma", "sample", "dec#0_feature")
        assert np.array_equal(data["dec#0"][1], features("dec#0", 1, slice(0, N)))
    with xarray.open_dataset(moved / out.name, engine="h5netcdf") as data:
        assert data["sample"].values.tolist() == list(range(100, 100 + N))
        assert data["label"].dims == ("sample",)


def test_a_missing_shard_of_a_virtual_file_is_named_when_it_is_opened(out: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    shards[1].unlink()
    with pytest.raises(StoreError, match=r"teacher\.shard-1-of-2\.h5") as caught:
        FeatureStore(out)
    assert "missing" in str(caught.value) and "\n" not in str(caught.value)


def test_damage_in_a_shard_is_found_through_the_virtual_file(out: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    flip(shards[1], "dec#0", (1, 16, 0))
    with FeatureStore(out) as store:
        assert store.read("dec#0", 2.0, slice(0, 48)).shape == (48, 3)
        with pytest.raises(StoreError, match=r"site 'dec#0', sigma 2, rows .* damaged"):
            store.read("dec#0", 2.0)


def test_shards_elsewhere_cannot_be_referred_to(out: Path, tmp_path: Path) -> None:
    shards = write_shards(out, 2)
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(shards[1], away)
    with pytest.raises(UsageError, match=r"does not lie in the folder of .*, as --virtual needs; move it"):
        merge(out, [shards[0], away / shards[1].name], virtual=True)
    shards[1].symlink_to(away / shards[1].name)
    with pytest.raises(UsageError, match="does not lie in the folder"):
        merge(out, shards, virtual=True)
    assert not out.exists()


def test_a_name_that_hdf5_would_read_as_a_pattern_cannot_be_referred_to(tmp_path: Path) -> None:
    out = tmp_path / "a%b.h5"
    shards = write_shards(out, 2)
    with pytest.raises(UsageError, match="HDF5 reads '%' in the name"):
        merge(out, shards, virtual=True)
    merge(out, shards)


def test_a_virtual_file_becomes_a_real_one_and_back(out: Path, whole: Path) -> None:
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    merge(out, shards)
    assert out.read_bytes() == whole.read_bytes()
    merge(out, shards, virtual=True)
    with FeatureStore(out) as store:
        assert is_virtual(store)


# --- refused ------------------------------------------------------------------------------------------------


def flip(path: Path, site: str, place: tuple[int, int, int]) -> None:
    with h5py.File(path) as file:
        start = file["sites"][site].id.get_chunk_info_by_coord(place).byte_offset
    data = bytearray(path.read_bytes())
    data[start + 3] ^= 4
    path.write_bytes(data)


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


def test_shards_of_different_versions_of_featlens_are_merged(out: Path) -> None:
    shards = write_shards(out, 2)
    with h5py.File(shards[1], "r+") as file:
        manifest = json.loads(file.attrs["manifest"])
        file.attrs["manifest"] = json.dumps({**manifest, "creator": "featlens 0.0.1"})
    merge(out, shards)


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


def test_hdf5_never_looks_for_shards_elsewhere(out: Path, tmp_path: Path, python: Any) -> None:
    from featlens.store.pack import pack

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shards = write_shards(out, 2)
    merge(out, shards, virtual=True)
    for shard in shards:
        packed = pack(shard, elsewhere / shard.name)
        with h5py.File(packed, "r+") as file:
            for dataset in file["sites"].values():
                if dataset.ndim == 3:
                    dataset[...] = 0
    code = """
import os, sys
os.environ["HDF5_VDS_PREFIX"] = sys.argv[1]  # Before HDF5 is loaded.
import numpy as np
from featlens.store import FeatureStore
from featlens.store.pack import pack
with FeatureStore(pack(sys.argv[2], sys.argv[3])) as copy, FeatureStore(sys.argv[2]) as store:
    for site in store.sites:
        for sigma in store.sigmas:
            assert store.read(site, sigma).any()
            assert np.array_equal(copy.read(site, sigma), store.read(site, sigma))
"""
    run = python(code, elsewhere, out, tmp_path / "copy.h5")
    assert run.returncode == 0, run.stderr
