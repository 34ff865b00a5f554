"""Every Python block of the page on comparing runs, gives what it says, and its commands are understood."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featlens.cli import build_parser, main
from featlens.comparison.panel import QUANTITIES

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "compare.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_store: Callable[..., Any]) -> Path:
    """Working folder with the files of the page."""
    monkeypatch.chdir(tmp_path)
    widths = {"enc.4x4_block0": 6, "dec.up": 5}
    for seed, name in enumerate(("teacher", "student", "a", "b", "c")):
        make_store(tmp_path / f"{name}.h5", widths=widths, sigmas=(0.5, 2.5), seed=seed)
    for seed, name in enumerate(("teacher-noise1", "student-noise1")):
        path = tmp_path / f"{name}.h5"
        make_store(path, widths=widths, sigmas=(0.5, 2.5), seed=seed, sample_digest="d2")
    return tmp_path


def test_python_blocks_give_what_they_say(folder: Path) -> None:
    names: dict[str, Any] = {}
    seen = 0
    for block in blocks("python"):
        for line in block.splitlines():
            code, _, told = line.partition("  # ")
            if told and told[0] in "(0123456789":
                assert eval(code, names) == ast.literal_eval(told), line  # noqa: S307
                seen += 1
            else:
                exec(code, names)
        if "again" in names:
            assert names.pop("again").equals(names["c"])
    assert seen == 2


def test_commands_are_understood(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser("compare")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) >= 12
    for line in lines:
        program, command, *words = shlex.split(line, comments=True)
        assert (program, command) == ("featlens", "compare")
        parser.parse_args(words)
        if not any("runs/" in word for word in words):
            assert main(["compare", *words, "--dry-run"]) == 0, line
    capsys.readouterr()


@pytest.mark.parametrize(
    "words", [("--cross-sigmas", "-o", "x.csv"), ("--draw", "teacher=teacher-noise1.h5")]
)
def test_commands_of_the_page_run(folder: Path, words: tuple[str, ...]) -> None:
    assert main(["compare", "teacher.h5", "student.h5", *words, "--permutations", "5"]) == 0


def test_columns_and_quantities_are_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in ("value", "interval", "null 95%", "p family", "ceiling"):
        assert f"\n| {name} |" in text
    assert all(f"`{name}`" in text for name in ("p", "q")) and set(QUANTITIES) >= {"p", "q"}
