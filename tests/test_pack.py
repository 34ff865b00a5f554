"""Compression loses nothing: the packed file reads as the plain one, and a kill leaves one of the two."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray

from featlens.errors import FeatlensError, StoreError, UsageError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.pack import pack

N, BLOCK = 300, 128
SIGMAS = [0.5, 2.0]
SITES = [
    SiteInfo("enc.conv", 0, 24, channels=24, resolution=8, reducer="gap", kind="Conv2d"),
    SiteInfo(
        "enc.same", 1, 24, channels=24, resolution=8, reducer="gap", kind="Identity", same_as="enc.conv"
    ),
    SiteInfo("dec#0", 2, 7, channels=7, reducer="gap", kind="Linear"),
]


def write(path: Path, dtype: str = "float32", stop: int = N, **options: Any) -> dict[tuple[str, int], Any]:
    """A file of random features and what is in it."""
    numbers, written = np.random.default_rng(0), {}
    options = {"labels": np.arange(N) % 3, "block": BLOCK, **options}
    with FeatureWriter.create(
        path, SITES, SIGMAS, range(N), {"model": "m"}, dtype=dtype, **options
    ) as writer:
        for index in range(len(SIGMAS)):
            block = {name: numbers.normal(size=(N, 24 if "enc" in name else 7)) for name in writer.names}
            block = {name: values.astype(dtype) for name, values in block.items()}
            written |= {(name, index): values for name, values in block.items()}
            if stop:
                writer.append(index, {name: values[:stop] for name, values in block.items()})
    return written


def content(path: Path) -> dict[str, Any]:
    """Everything but the way in which features are stored."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}

    def walk(group: Any, prefix: str) -> None:
        for name in group:
            thing, place = group[name], f"{prefix}/{name}"
            skip = ("REFERENCE_LIST", "DIMENSION_LIST")
            attrs = {key: repr(value) for key, value in thing.attrs.items() if key not in skip}
            found[place] = [attrs, first.setdefault(h5py.h5o.get_info(thing.id).addr, place)]
            if isinstance(thing, h5py.Group):
                walk(thing, place)
            else:
                scales = [[scale.name for scale in axis.values()] for axis in thing.dims]
                found[place] += [thing.dtype, thing.shape, thing[()].tobytes(), scales, repr(thing.fillvalue)]

    with h5py.File(path) as file:
        found["/"] = {key: repr(value) for key, value in file.attrs.items()}
        walk(file, "")
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.h5"


def debris(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_everything_in_the_file_is_bit_for_bit_as_before(path: Path, dtype: str) -> None:
    written = write(path, dtype)
    before, size = content(path), path.stat().st_size
    assert pack(path) == path
    assert content(path) == before
    assert path.stat().st_size < size
    with FeatureStore(path) as store:
        assert list(store.sites.values()) == SITES
        assert store.complete and store.manifest["model"] == "m"
        for (name, index), values in written.items():
            assert np.array_equal(store.read(name, SIGMAS[index]), values.astype(np.float32))
        assert store.verify() == []
    assert debris(path) == []


def test_features_are_shuffled_compressed_and_then_checksummed(path: Path) -> None:
    write(path)
    pack(path, level=7)
    with h5py.File(path) as file:
        assert file["sites/enc.conv"] == file["sites/enc.same"]
        for name in ("enc.conv", "dec#0"):
            dataset = file["sites"][name]
            plan = dataset.id.get_create_plist()
            filters = [plan.get_filter(number) for number in range(plan.get_nfilters())]
            assert [entry[3] for entry in filters] == [b"shuffle", b"deflate", b"fletcher32"]
            assert filters[1][2] == (7,)
            assert dataset.chunks == (1, BLOCK, dataset.shape[2])


def test_a_copy_leaves_the_file_alone_and_is_the_same_every_time(path: Path, tmp_path: Path) -> None:
    write(path)
    before = path.read_bytes()
    out = tmp_path / "packed.h5"
    out.write_text("an earlier one")
    seen: list[tuple[int, int]] = []
    assert pack(path, out, progress=lambda done, total: seen.append((done, total))) == out
    assert path.read_bytes() == before
    assert content(out) == content(path)
    assert seen[-1] == (2 * 2 * N, 2 * 2 * N) and seen == sorted(seen)
    pack(path)
    assert path.read_bytes() == out.read_bytes()
    pack(path)
    assert path.read_bytes() == out.read_bytes(), "packing again changes nothing"


def test_a_packed_file_is_labelled_netcdf(path: Path) -> None:
    written = write(path)
    pack(path)
    with xarray.open_dataset(path, engine="h5netcdf", group="sites") as data:
        assert data["dec#0"].dims == ("sigma", "sample", "dec#0_feature")
        assert np.array_equal(data["dec#0"][1], written["dec#0", 1])


def test_what_others_put_into_the_file_is_kept(path: Path) -> None:
    write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = np.array([1.5, 2.5])
        file.attrs["nothing"] = h5py.Empty("f4")
        group = file.create_group("mine", track_order=True)
        group.attrs["b\u00fccher"] = "\u03c3"
        group["words"] = np.array(["a", "\u03c3\u03c3"], dtype=h5py.string_dtype())
        group.create_dataset(
            "big", data=np.arange(6e4).reshape(200, 300), compression="gzip", chunks=(7, 300)
        )
        group["scalar"] = 3
        group["empty"] = h5py.Empty("i8")
        group["same"] = group["big"]
        group["soft"] = h5py.SoftLink("/sites")
        group["loop"] = file["/"]
    expected = foreign(path)
    pack(path)
    assert foreign(path) == expected


def foreign(path: Path) -> list[str]:
    with h5py.File(path) as file:
        group = file["mine"]
        return [
            repr(file.attrs["note"]),
            repr(file.attrs["nothing"]),
            repr(dict(group.attrs)),
            repr(group["words"][:]),
            repr((group["big"][:].sum(), group["big"].compression, group["big"].chunks)),
            repr((group["scalar"][()], group["empty"].shape, group["same"] == group["big"])),
            repr((group.get("soft", getlink=True).path, group["loop"] == file["/"])),
        ]


def test_a_file_that_another_tool_wrote_is_packed(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1, 40, 3)).astype(">f4")
    with h5py.File(path, "w") as file:
        file.attrs.update(format="featlens.features", version=1, complete=1, manifest="{}")
        file["sigma"], file["sample"] = [0.5], np.arange(40)
        file["sites/x"] = values
    pack(path)
    with FeatureStore(path) as store:
        assert np.array_equal(store.read("x", 0.5), values[0])
    with h5py.File(path) as file:
        assert file["sites/x"].dtype == np.dtype(">f4") and file["sites/x"].compression == "gzip"


def test_features_that_repeat_themselves_take_little(path: Path) -> None:
    with FeatureWriter.create(path, [SiteInfo("a", 0, 64)], [0.5], range(5000), {}) as writer:
        writer.append(0, {"a": np.tile(np.arange(64, dtype=np.float32), (5000, 1))})
    before = path.stat().st_size
    assert pack(path).stat().st_size < before / 20


# --- refused ------------------------------------------------------------------------------------------------


def test_an_incomplete_file_is_refused(path: Path, tmp_path: Path) -> None:
    write(path, stop=BLOCK)
    before = path.read_bytes()
    for out in (None, tmp_path / "b.h5"):
        with pytest.raises(
            StoreError, match=r"a\.h5 is incomplete: 256 of 600 rows; run the extract command"
        ):
            pack(path, out)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


@pytest.mark.parametrize("level", [-1, 10, "fast", None])
def test_an_impossible_level_is_refused(path: Path, level: Any) -> None:
    write(path)
    with pytest.raises(UsageError, match="level must be a whole number from 0 to 9"):
        pack(path, level=level)


def test_a_damaged_file_is_refused_with_site_and_rows_and_stays(path: Path) -> None:
    write(path)
    with h5py.File(path) as file:
        start = file["sites/dec#0"].id.get_chunk_info_by_coord((1, 128, 0)).byte_offset
    data = bytearray(path.read_bytes())
    data[start + 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"site 'dec#0', sigma 2, rows 128\.\.256 are damaged"):
        pack(path)
    assert path.read_bytes() == data
    assert debris(path) == []


def test_a_file_that_is_being_written_is_refused(path: Path, python: Any) -> None:
    write(path)
    code = "import sys; from featlens.store.pack import pack; pack(sys.argv[1])"
    with h5py.File(path, "r+"):
        done = python(code, path)
    assert done.returncode == 1
    assert "is being written in another process" in done.stderr.splitlines()[-1]


FULL = """
import resource, sys
from featlens.errors import FeatlensError
from featlens.store.pack import pack
size = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
try:
    pack(sys.argv[1])
except FeatlensError as error:
    print(error)
"""


@pytest.mark.parametrize("size", [1_000, 40_000])
def test_a_full_disk_leaves_the_old_file(path: Path, python: Any, size: int) -> None:
    pytest.importorskip("resource")
    write(path)
    before = path.read_bytes()
    done = python(FULL, path, size)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{path}: the file size limit was reached; raise it (ulimit -f) and run the same command again\n"
    )
    assert path.read_bytes() == before
    assert debris(path) == []


# --- killed -------------------------------------------------------------------------------------------------

DIE = """
import os, signal, sys
import featlens.store.pack
from pathlib import Path
left = int(sys.argv[2])
def tick(done, total):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
replace = Path.replace
def last(self, target):
    if sys.argv[3] == "after":
        replace(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
if left <= 0:
    Path.replace = last
featlens.store.pack.pack(sys.argv[1], progress=tick)
"""


@pytest.mark.parametrize(("tick", "end"), [(1, ""), (7, ""), (0, "before"), (0, "after")])
def test_a_kill_leaves_the_old_file_or_the_new_one_and_the_next_run_clears_up(
    path: Path, tmp_path: Path, python: Any, tick: int, end: str
) -> None:
    write(path)
    old = path.read_bytes()
    new = pack(path, tmp_path / "new.h5").read_bytes()
    done = python(DIE, path, tick, end)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_bytes() == (new if end == "after" else old)
    assert len(debris(path)) == (0 if end == "after" else 1)
    pack(path)
    assert path.read_bytes() == new
    assert debris(path) == []


def test_what_a_living_process_writes_is_not_cleared_up(path: Path, python: Any) -> None:
    write(path)
    (path.parent / f".{path.name}.notes.tmp").write_text("somebody's own")
    other = """
import sys
from featlens.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    print(temporary.name, flush=True)
    sys.stdin.read()
    temporary.write_bytes(b"theirs")
"""
    with subprocess.Popen(
        [sys.executable, "-c", other, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        name = child.stdout.readline().strip()
        pack(path)
        assert set(debris(path)) == {name, f".{path.name}.notes.tmp"}
        child.stdin.close()
    assert path.read_bytes() == b"theirs"
    assert debris(path) == [f".{path.name}.notes.tmp"]


def test_a_virtual_file_becomes_one_that_needs_no_shards(tmp_path: Path) -> None:
    from featlens.store.shards import merge, shard_path

    out = tmp_path / "a.h5"
    values = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    shards = []
    for index in range(2):
        manifest = {"shard": {"index": index, "count": 2, "first": 30 * index, "total": 60}}
        shards.append(shard_path(out, index, 2))
        rows = slice(30 * index, 30 * index + 30)
        with FeatureWriter.create(
            shards[-1], [SiteInfo("x", 0, 4)], [0.5], range(60)[rows], manifest, block=10
        ) as writer:
            writer.append(0, {"x": values[rows]})
    merge(out, shards, virtual=True)
    pack(out)
    for shard in shards:
        shard.unlink()
    with FeatureStore(out) as store:
        assert np.array_equal(store.read("x", 0.5), values)


def test_an_output_that_cannot_be_written_is_one_line(path: Path, tmp_path: Path) -> None:
    write(path)
    with pytest.raises(FeatlensError, match="there is no such file or folder; check the path"):
        pack(path, tmp_path / "nowhere" / "b.h5")
