"""Kept values: the same command goes on where it was stopped, whatever the kill left in the file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from featlens.errors import FeatlensError
from featlens_probes.kept import Kept, kept_path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_values_are_made_once(tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        with Kept(tmp_path / "a" / "k.jsonl", {"seed": 1}) as kept:
            for key in ("x", "y"):
                assert kept.get(key, lambda key=key: calls.append(key) or {"v": [1.0, key]}) == {
                    "v": [1.0, key]
                }
    assert calls == ["x", "y"]


def test_another_identity_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    with Kept(path, {"seed": 1}) as kept:
        kept.put("x", 1)
    with Kept(path, {"seed": 2}) as kept:
        assert "x" not in kept
        assert kept.get("x", lambda: 2) == 2
    assert len(lines(path)) == 2


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_line_cut_anywhere_is_dropped_and_the_rest_kept(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "k.jsonl"
    with Kept(path, {}) as kept:
        kept.put("first", 1.25)
        kept.put("second", "a value of some length")
    path.write_bytes(path.read_bytes()[:-cut])
    with Kept(path, {}) as kept:
        assert kept.values == {"first": 1.25}
        kept.put("third", 3)
    with Kept(path, {}) as kept:
        assert kept.values == {"first": 1.25, "third": 3}
    assert [json.loads(line).get("key") for line in lines(path)] == [None, "first", "third"]


@pytest.mark.parametrize(
    "text", ["", "{", "[1]\n", "null\n", "\x00\x01\n", '{"identity": 3}\n{"key": "x"}\n']
)
def test_a_file_of_something_else_is_begun_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "k.jsonl"
    path.write_text(text)
    with Kept(path, {}) as kept:
        assert kept.values == {}
        kept.put("x", 1)
    with Kept(path, {}) as kept:
        assert kept.values == {"x": 1}


def test_a_line_without_key_or_value_ends_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    with Kept(path, {}) as kept:
        kept.put("x", 1)
    with path.open("a") as file:
        file.write('{"key": "y"}\n')
    with Kept(path, {}) as kept:
        assert kept.values == {"x": 1}


def test_nan_survives(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    with Kept(path, {}) as kept:
        kept.put("x", [math.nan, math.inf])
    with Kept(path, {}) as kept:
        assert math.isnan(kept.values["x"][0])
        assert kept.values["x"][1] == math.inf


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    with Kept(path, {}), pytest.raises(FeatlensError, match="in use by another process"):
        Kept(path, {}).__enter__()


def test_remove(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with Kept(kept_path(out), {}) as kept:
        kept.put("x", 1)
        kept.remove()
    assert list(tmp_path.iterdir()) == []


def test_memory_only() -> None:
    with Kept(None, {}) as kept:
        assert kept.get("x", lambda: 1) == 1
        kept.remove()


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "k.jsonl").mkdir()
    with pytest.raises(FeatlensError, match="folder"):
        Kept(tmp_path / "k.jsonl", {}).__enter__()
