"""Outputs that cannot be written: one clear line, what was there stays, and the command can be repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest

from featlens import FeatureStore
from featlens.cli import main
from featlens_trainers import Study

Run = Callable[..., CompletedProcess[str]]
STUDENT = "student-teacher-random-reverse_kl-s0"


def writers(tiny_study: Path, tiny_toml: Path, a: Path) -> dict[str, list[Any]]:
    """Every command that writes, and the name of its output."""
    return {
        "extract": ["x.h5", "extract", tiny_study / "teacher", "--n", "8", "--sigmas", "1"],
        "compare": ["x.html", "compare", a, a, "--permutations", "0", "--embedding", "pca"],
        "probe": ["x.json", "probe", a, "--splits", "1", "--permutations", "0"],
        "sample": ["x.png", "sample", tiny_study / "teacher", "--n", "2", "--steps", "1"],
        "evaluate": ["x.json", "evaluate", tiny_study / STUDENT, "--n", "8", "--resamples", "0"],
        "report": ["x.html", "report", tiny_study],
        "study": ["x", "study", tiny_toml],
        "train": ["x", "train", tiny_toml],
        "distill": ["x", "distill", tiny_toml],
        "convert": ["x", "convert", tiny_study / "teacher"],
    }


FILES = ("extract", "compare", "probe", "sample", "evaluate", "report")
"""Commands that write one file."""


def to(words: list[Any], out: Path) -> list[Any]:
    """A command with its output."""
    return [*words, out] if words[0] == "convert" else [*words, "-o", out]


@pytest.mark.parametrize("name", [*FILES, "study", "train", "distill", "convert"])
def test_an_output_below_a_file_is_refused(
    tiny_study: Path, tiny_toml: Path, a: Path, tmp_path: Path, fail: Any, name: str
) -> None:
    file = tmp_path / "a file"
    file.write_text("mine")
    output, *words = writers(tiny_study, tiny_toml, a)[name]
    for out in (file / output, file / "deeper" / output):
        line = fail(1, *to(words, out))
        assert str(file) in line
        assert f"choose another {'name' if name == 'convert' else 'output with -o'}" in line
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_an_output_that_is_a_folder_is_refused(
    tiny_study: Path, tiny_toml: Path, a: Path, tmp_path: Path, fail: Any, name: str
) -> None:
    output, *words = writers(tiny_study, tiny_toml, a)[name]
    (tmp_path / output).mkdir()
    assert "this is a folder; give the path of a file" in fail(1, *words, "-o", tmp_path / output)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["study", "train", "distill"])
def test_a_study_folder_that_is_a_file_is_refused(tiny_toml: Path, a: Path, fail: Any, name: str) -> None:
    assert "expected a folder, found a file" in fail(1, name, tiny_toml, "-o", a)


def test_extract_on_a_full_disk_can_be_finished(tiny_study: Path, tmp_path: Path, command: Run) -> None:
    out, reference = tmp_path / "new" / "a.h5", tmp_path / "b.h5"
    words = ["extract", str(tiny_study / "teacher"), "--sigmas", "0.5,2.5", "--n", "300", "-o"]
    done = command(*words, out, limit=2_000)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1 and str(out) in done.stderr, done.stderr
    assert "file size limit was reached" in done.stderr
    assert list(out.parent.iterdir()) == []
    assert main([*words, str(out)]) == main([*words, str(reference)]) == 0
    with FeatureStore(out) as one, FeatureStore(reference) as two:
        assert one.complete and list(one.sites) == list(two.sites)
        assert all(np.array_equal(one.read(site, 2.5), two.read(site, 2.5)) for site in one.sites)


@pytest.mark.parametrize("name", ["compare x.nc", "compare x.html", "probe x.nc"])
def test_a_result_on_a_full_disk_leaves_the_old_one(a: Path, command: Run, name: str) -> None:
    verb, file = name.split()
    out = a.parent / file
    out.write_text("an earlier result")
    words = [verb, *([a, a] if verb == "compare" else [a]), "--permutations", "2", "-o", out]
    words += ["--embedding", "pca"] if file == "x.html" else []
    done = command(*words, limit=2_000)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{out}: the file size limit was reached" in done.stderr
    assert out.read_text() == "an earlier result"
    assert sorted(path.name for path in a.parent.iterdir()) == ["a.h5", file]


def test_a_card_on_a_full_disk_leaves_the_old_one(tiny_study: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "card.json"
    words = ["evaluate", tiny_study / STUDENT, "--n", "8", "--resamples", "0", "-o", out]
    assert main([str(word) for word in words]) == 0
    good = out.read_bytes()
    out.write_text("an earlier card")
    kept = sorted(path.name for path in tmp_path.rglob("*"))
    # The features of the reference are there already: it is the card itself that finds no room.
    done = command(*words, limit=len(good) // 2)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{out}: the file size limit was reached" in done.stderr
    assert out.read_text() == "an earlier card"
    assert sorted(path.name for path in tmp_path.rglob("*")) == kept


def test_a_conversion_on_a_full_disk_leaves_nothing_behind(
    tiny_study: Path, tmp_path: Path, command: Run, file_digests: Any
) -> None:
    words = ["convert", str(tiny_study / "teacher")]
    out, reference = tmp_path / "new" / "out", tmp_path / "whole"
    done = command(*words, out, limit=2_000)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{out}/unet/diffusion_pytorch_model.safetensors: the file size limit was" in done.stderr
    assert list(out.parent.iterdir()) == []
    assert main([*words, str(out)]) == main([*words, str(reference)]) == 0
    assert sorted(file_digests(out).values()) == sorted(file_digests(reference).values())


def test_a_study_on_a_full_disk_keeps_what_it_has_and_goes_on(
    tiny_study: Path, tiny_toml: Path, tmp_path: Path, command: Run, file_digests: Any
) -> None:
    study = Path(shutil.copytree(tiny_study, tmp_path / "study"))
    shutil.rmtree(study / STUDENT)
    for path in study.glob(f"features/{STUDENT}*"):
        path.unlink()
    kept = {name: digest for name, digest in file_digests(study).items() if name.endswith(".safetensors")}
    done = command("study", tiny_toml, "-o", study, "--jobs", "1", limit=20_000)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("featlens study: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "the file size limit was reached" in errors[0]
    assert kept.items() <= file_digests(study).items()
    assert json.loads((study / "results.json").read_text())["format"] == "featlens.study"
    assert "</html>" in (study / "report.html").read_text(encoding="utf-8")
    Study.open(study).run(jobs=0)
    assert kept.items() <= file_digests(study).items()
    ours, theirs = (json.loads((root / STUDENT / "run.json").read_text()) for root in (study, tiny_study))
    assert ours["status"] == "done"
    assert ours["info"]["weights_digest"] == theirs["info"]["weights_digest"]


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="the system has no /sys")
def test_a_file_system_that_takes_no_files(a: Path, fail: Any) -> None:
    line = fail(1, "compare", a, a, "--permutations", "0", "-o", "/sys/kernel/page.html")
    assert "choose another output with -o" in line
