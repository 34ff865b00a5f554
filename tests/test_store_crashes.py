"""Killed writers: what was complete stays readable and is continued, to the same bytes."""

from __future__ import annotations

import json
import os

import h5py
import numpy as np
import pytest

from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from tests.store_helpers import WRITER, checked, expected

KILLS = (
    WRITER
    + """
import json, os, random, signal, time
begun = time.perf_counter()
with open_writer(path) as writer:
    fill(writer)
whole, seconds = path.read_bytes(), time.perf_counter() - begun
draws, cut, kills, midway = random.Random(int(sys.argv[2])), path.with_name("cut.h5"), 0, 0
while midway < int(sys.argv[3]) and kills < 400:
    kills += 1
    if cut.exists() and FeatureStore(cut).complete:
        cut.unlink()
    child = os.fork()
    if child == 0:
        with open_writer(cut) as writer:
            fill(writer)
        os._exit(0)
    time.sleep(draws.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if cut.exists():
        with FeatureStore(cut) as store:
            done = store.rows_done.tolist()
            midway += 0 < sum(done) < N * len(SIGMAS)
            for index, sigma in enumerate(SIGMAS):
                for site, expected in block(index, 0, done[index]).items():
                    assert np.array_equal(store.read(site, sigma, slice(0, done[index])), expected)
with open_writer(cut) as writer:
    fill(writer)
print(json.dumps({"same": cut.read_bytes() == whole, "midway": midway}))
"""
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.h5"


def test_a_writer_that_dies_without_closing_leaves_a_file_that_resumes(path, python):
    die = "import os; writer = open_writer(path); writer.append(0, block(0, 0, 768)); os._exit(9)"
    result = python(WRITER + die, path)
    assert result.returncode == 9, result.stderr
    with FeatureStore(path) as store:
        assert not store.complete
        assert store.rows_done.tolist() == [768, 0]
        assert np.array_equal(store.read("enc.conv", 0.5, slice(0, 768)), expected("enc.conv", 0, 768))
    checked(python(WRITER + "\nwith open_writer(path) as writer: fill(writer)", path))
    with FeatureStore(path) as store:
        assert store.complete
        for index, sigma in enumerate((0.5, 2.0)):
            for site in ("enc.conv", "dec.conv"):
                assert np.array_equal(store.read(site, sigma), expected(site, index, 2000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_resumed_the_file_has_the_bytes_of_an_uninterrupted_one(path, python):
    told = json.loads(checked(python(KILLS, path, 7, 5)))
    assert told["midway"] == 5, "the kills came too early or too late to show anything"
    assert told["same"]


def test_a_complete_file_whose_writer_died_before_closing_becomes_complete_on_resume(path, python):
    python(WRITER + "import os; fill(open_writer(path)); os._exit(9)", path)
    with FeatureStore(path) as store:
        assert store.rows_done.tolist() == [2000, 2000]
        assert not store.complete
    FeatureWriter.resume(path, {"model": "m"}).close()
    with FeatureStore(path) as store:
        assert store.complete


@pytest.mark.parametrize(("rows", "start"), [(600, 0), (600, 512), (100, 0)])
def test_a_chunk_that_a_kill_tore_is_replaced_in_place(path, tmp_path, rows, start):
    values = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    for target in (path, tmp_path / "whole.h5"):
        with FeatureWriter.create(target, [SiteInfo("a", 0, 3)], [0.5], np.arange(rows), {}) as writer:
            if start:
                writer.append(0, {"a": values[:start]})
            if target != path:
                writer.append(0, {"a": values[start:]})
    with h5py.File(path) as file:
        chunk = file["sites/a"].id.get_chunk_info_by_coord((0, start, 0))
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(values[start : start + 5].tobytes())
    with FeatureWriter.resume(path, {}) as writer:
        writer.append(0, {"a": values[start:]})
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_while_it_lays_down_leaves_nothing_for_ever(path, python):
    kill = """
import os, signal
from featlens.store import lay_down
class Killer:
    def __init__(self): self.left = int(sys.argv[2])
    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
real, lay_down._lay_down_site = lay_down._lay_down_site, Killer()
open_writer(path)
"""
    for sites_done in (0, 1):
        assert python(WRITER + kill, path, sites_done).returncode == -9
        (left,) = path.parent.iterdir()
        assert left.name.startswith(".a.h5.") and left.name.endswith(".tmp")
    (path.parent / ".a.h5.other").write_text("not ours")
    (path.parent / ".b.h5.12345678.tmp").write_text("of another file")
    checked(python(WRITER + "open_writer(path).close()", path))
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        ".a.h5.other",
        ".b.h5.12345678.tmp",
        "a.h5",
    ]


def test_completing_a_file_changes_it_in_one_stroke(path, monkeypatch):
    sites = [SiteInfo("a", 0, 2)]
    with FeatureWriter.create(path, sites, [0.5], [1], {}) as writer:
        writer.append(0, {"a": np.ones((1, 2))})
        before, strokes = path.read_bytes(), []
        real = os.write
        monkeypatch.setattr(
            os, "write", lambda handle, data: strokes.append(bytes(data)) or real(handle, data)
        )
    after = path.read_bytes()
    changed = [place for place in range(len(before)) if before[place] != after[place]]
    (stroke,) = strokes
    assert after[min(changed) : max(changed) + 1] == stroke
    assert len(before) == len(after) and len(stroke) < 4096
    with h5py.File(path) as file:
        assert file.attrs["complete"] == 1


def test_a_file_that_another_tool_left_inside_a_block_goes_on_with_that_block(path):
    rows = np.arange(600 * 4, dtype=np.float32).reshape(600, 4)
    with FeatureWriter.create(path, [SiteInfo("a", 0, 4)], [0.5, 1.0], range(600), {}) as writer:
        writer.append(0, {"a": rows[:512]})
    with h5py.File(path, "r+") as file:
        file["rows_done"][0] = 300
    with FeatureWriter.resume(path, {}) as writer:
        assert writer.done(0) == 256
        # A kill from here on tears a block that no longer counts.
        with h5py.File(path, locking=False) as file:
            assert file["rows_done"][:].tolist() == [256, 0]
        writer.append(0, {"a": rows[256:]})
        writer.append(1, {"a": rows})
    with FeatureStore(path) as store:
        assert store.complete
        assert np.array_equal(store.read("a", 0.5), rows)


@pytest.mark.parametrize("size", [10, 5000, 30_000])
def test_completing_a_file_writes_few_bytes_however_long_the_manifest_is(path, monkeypatch, size):
    from featlens.store import draft

    writer = FeatureWriter.create(path, [SiteInfo("a", 0, 1)], [1.0], [0], {"model": "m" * size})
    writer.append(0, {"a": np.ones((1, 1))})
    written, write = [], os.write

    def counted(handle, data):
        written.append(len(data))
        return write(handle, data)

    monkeypatch.setattr(draft.os, "write", counted)
    writer.close()
    monkeypatch.undo()
    assert len(written) == 1
    assert written[0] < 200
    with FeatureStore(path) as store:
        assert store.complete
