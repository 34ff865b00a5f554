"""``featlens merge``: shards found by name, one path on stdout, one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featlens.cli import main
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.shards import shard_path, shard_rows

N, BLOCK = 60, 16
Fail = Callable[..., str]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "teacher.h5"


def write(path: Path, rows: slice, shard: dict[str, int] | None, stop: int | None = None) -> Path:
    values = np.sqrt(np.arange(N * 4, dtype=np.float32)).reshape(N, 4)[rows]
    manifest = {"model": "m", **({} if shard is None else {"shard": shard})}
    sites = [SiteInfo("enc.conv", 0, 4)]
    with FeatureWriter.create(path, sites, [0.5], range(N)[rows], manifest, block=BLOCK) as writer:
        writer.append(0, {"enc.conv": values[:stop]})
    return path


@pytest.fixture
def shards(out: Path) -> list[Path]:
    found = []
    for index in range(2):
        rows = shard_rows(N, BLOCK, index, 2)
        place = {"index": index, "count": 2, "first": rows.start, "total": N}
        found.append(write(shard_path(out, index, 2), rows, place))
    return found


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    (tmp_path / "one").mkdir()
    return write(tmp_path / "one" / "whole.h5", slice(0, N), None).read_bytes()


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    code = main(["merge", *map(str, words)])
    told, errors = capsys.readouterr()
    assert (code, errors) == (0, "")
    return told


@pytest.mark.parametrize("given", [[], [0], [1], [1, 0]])
def test_shards_are_named_or_found_beside_the_file(
    out: Path, shards: list[Path], whole: bytes, capsys: pytest.CaptureFixture[str], given: list[int]
) -> None:
    assert run(capsys, out, *(shards[index] for index in given)) == f"{out}\n"
    assert out.read_bytes() == whole
    assert all(shard.exists() for shard in shards)


def test_one_shard_of_another_folder_brings_its_siblings(
    out: Path, shards: list[Path], whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = out.parent / "one" / "merged.h5"
    run(capsys, elsewhere, shards[0])
    assert elsewhere.read_bytes() == whole


def test_shards_in_the_working_folder(
    out: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(out.parent)
    assert run(capsys, "teacher.h5", "--remove") == "teacher.h5\n"
    assert [path.name for path in out.parent.iterdir()] == ["teacher.h5"]


def test_json_says_what_was_made_of_what(
    out: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in shards]
    expected = {
        "file": str(out),
        "virtual": False,
        "shards": names,
        "removed": names,
        "sites": ["enc.conv"],
        "sigmas": [0.5],
        "n": N,
    }
    assert json.loads(run(capsys, out, "--json", "--remove")) == expected
    assert not any(path.exists() for path in shards)
    again = json.loads(run(capsys, out, "--json", "--remove"))
    assert again == {**expected, "shards": [], "removed": []}


def test_a_virtual_file_keeps_its_shards(
    out: Path, shards: list[Path], whole: bytes, capsys: pytest.CaptureFixture[str], fail: Fail
) -> None:
    assert json.loads(run(capsys, out, "--virtual", "--json"))["virtual"] is True
    with FeatureStore(out) as store:
        assert store.complete and len(store) == N
    line = fail(2, "merge", out, "--virtual", "--remove")
    assert "--remove would take away the shards that a --virtual file refers to" in line
    assert all(path.exists() for path in shards)
    # Removing them is safe only because the file is made a real one first.
    run(capsys, out, "--remove")
    assert out.read_bytes() == whole


def test_nothing_is_removed_if_anything_is_wrong(out: Path, shards: list[Path], fail: Fail) -> None:
    rows = shard_rows(N, BLOCK, 1, 2)
    write(shards[1], rows, {"index": 1, "count": 2, "first": rows.start, "total": N}, stop=BLOCK)
    line = fail(1, "merge", out, "--remove")
    assert "teacher.shard-1-of-2.h5 is incomplete: rows 48..60 of sigma 0.5 are missing" in line
    shards[1].unlink()
    line = fail(1, "merge", out, "--remove")
    assert "shard 1 of 2 (teacher.shard-1-of-2.h5) is missing; run the extract command again" in line
    assert [path.name for path in out.parent.iterdir()] == [shards[0].name]


def test_only_whole_files_of_the_same_content_stand_in_for_a_merge(
    out: Path, shards: list[Path], whole: bytes, capsys: pytest.CaptureFixture[str], fail: Fail
) -> None:
    out.write_text("notes")
    line = fail(1, "merge", out, "--remove")
    assert "choose another output, remove it, or replace it with --force" in line
    assert out.read_text() == "notes" and all(path.exists() for path in shards)
    run(capsys, out, "--force")
    assert out.read_bytes() == whole
    shards[0].unlink()
    # As after a kill between two removals.
    run(capsys, out, "--remove")
    assert not shards[1].exists()


def test_a_shard_as_the_output_is_wrong_usage(out: Path, shards: list[Path], fail: Fail) -> None:
    line = fail(2, "merge", shards[0])
    assert f"is a shard; the file to write comes first: featlens merge {out}" in line
    assert "is a shard" in fail(2, "merge", *shards)


def test_no_shards_and_a_file_that_is_no_shard_are_one_line(out: Path, whole: bytes, fail: Fail) -> None:
    assert "there are no shards to merge (expected teacher.shard-0-of-2.h5 and so on)" in fail(
        1, "merge", out
    )
    assert "there is no such file or folder" in fail(1, "merge", out, shard_path(out, 0, 2))
    assert "is not a shard (its manifest has no 'shard'" in fail(
        1, "merge", out, out.parent / "one" / "whole.h5"
    )


def test_a_merge_on_a_full_disk_leaves_nothing(out: Path, shards: list[Path], command: Any) -> None:
    done = command("merge", out, "--remove", limit=2_000)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "file size limit was reached" in done.stderr, done.stderr
    assert f"{out}: " in done.stderr and ".tmp" not in done.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == [path.name for path in shards]


def test_a_merge_runs_without_torch(out: Path, shards: list[Path], python: Any) -> None:
    code = "import sys\n"
    code += "from featlens.cli import main; main(['merge', sys.argv[1]]); print('torch' in sys.modules)"
    assert python(code, out).stdout.splitlines() == [str(out), "False"]
