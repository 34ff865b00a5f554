"""Wrong files, models, devices and numbers: one clear line and exit code 1 or 2."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featlens.cli import main

STUDENT = "student-teacher-random-reverse_kl-s0"


# --- feature files ------------------------------------------------------------------------------------------


def text(path: Path) -> None:
    path.write_text("not HDF5 at all")


def empty(path: Path) -> None:
    path.touch()


def other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)


def truncated(path: Path) -> None:
    shutil.copy(path.parent / "a.h5", path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def newer(path: Path) -> None:
    shutil.copy(path.parent / "a.h5", path)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 99


def incomplete(path: Path) -> None:
    shutil.copy(path.parent / "a.h5", path)
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = 0
        file["rows_done"][1] = 7


WRONG_FILES = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (Path.mkdir, "this is a folder"),
    "empty": (empty, "found an empty file"),
    "text": (text, "expected a feature file (HDF5), found something else"),
    "other HDF5": (other_hdf5, "found another HDF5 file"),
    "truncated": (truncated, "is truncated"),
    "newer": (newer, "written by a newer featlens"),
    "incomplete": (incomplete, "is incomplete: 67 of 120 rows"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
@pytest.mark.parametrize("name", ["compare", "compare as A", "probe", "inspect"])
def test_a_wrong_file_is_named(a: Path, fail: Any, name: str, kind: str) -> None:
    make, said = WRONG_FILES[kind]
    wrong = a.parent / "wrong.h5"
    make(wrong)
    if (name, kind) == ("inspect", "incomplete"):
        assert main(["inspect", str(wrong)]) == 0  # It is there to show such things.
        return
    words = {"compare": ["compare", a, wrong], "compare as A": ["compare", wrong, a]}.get(name, [name, wrong])
    line = fail(1, *words)
    assert str(wrong) in line and said in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample_digest": "d2"}, "other samples or other noise"),
        ({"n": 50}, "other samples or other noise"),
        ({"sigmas": (0.1,)}, "'b' has 0.1); none is common"),
    ],
)
def test_files_that_do_not_match_are_refused(
    a: Path, make_store: Callable[..., Any], fail: Any, options: dict[str, Any], said: str
) -> None:
    make_store(a.parent / "b.h5", **options)
    assert said in fail(2 if "sigmas" in options else 1, "compare", a, a.parent / "b.h5")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sites", "enc.konv"], "no site 'enc.konv' in "),
        (["--sites", "enc.konv"], "did you mean 'enc.conv'"),
        (["--sites", ""], "expected site names or patterns separated by commas, got ''"),
        (["--sigmas", "0.7"], "0.5, 2.5"),
        (["--sigmas", "nan"], "0.5, 2.5"),
        (["--sigmas", "-0.5"], "0.5, 2.5"),
        (["--sigmas", ","], "expected numbers separated by commas, got ','"),
        (["--permutations", "-1"], "permutations must be 0 or more, got -1"),
        (["-o", "page.pdf"], "expected a name that ends in .html, .nc or .csv"),
        (["-o", "folder"], "expected a name that ends in"),
        (["--measure", "ckaa"], "did you mean 'cka'"),
    ],
)
def test_compare_refuses_what_the_files_do_not_have(a: Path, fail: Any, words: list[str], said: str) -> None:
    assert said in fail(2, "compare", a, a, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sites", "enc.konv"], "did you mean 'enc.conv'"),
        (["--sites", ""], "expected names separated by commas, got ''"),
        (["--sigmas", "0.7"], "has no sigma 0.7; it has 0.5, 2.5"),
        (["--sigmas", ","], "expected numbers separated by commas, got ','"),
        (["--splits", "0"], "splits must be at least 1"),
        (["--permutations", "-2"], "permutations at least 0"),
        (["-o", "probe.xlsx"], "expected a name that ends in .json, .nc or .csv"),
    ],
)
def test_probe_refuses_what_makes_no_sense(a: Path, fail: Any, words: list[str], said: str) -> None:
    assert said in fail(2, "probe", a, *words)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "has no labels"),
        (np.zeros(60), "have the label 0; two classes are needed"),
        (np.arange(60), "are too few for 60 classes"),
        (np.r_[np.zeros(57), np.ones(3)], "are too few for 2 classes (the rarest has 3)"),
    ],
)
def test_probe_refuses_labels_that_cannot_be_probed(
    tmp_path: Path, make_store: Callable[..., Any], fail: Any, labels: Any, said: str
) -> None:
    options = {} if labels is None else {"labels": labels.astype(np.int64)}
    make_store(tmp_path / "a.h5", **options)
    assert said in fail(2, "probe", tmp_path / "a.h5")


# --- models, devices, numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--sites", "enc.8x8_blok0"],
            "no site 'enc.8x8_blok0' in the network UNet: did you mean 'enc.8x8_block0'",
        ),
        (["--sigmas", "0"], "sigmas must be one or more numbers above 0"),
        (["--sigmas", "nan"], "sigmas must be one or more numbers above 0"),
        (["--sigmas", "0.5,0.5"], "a sigma is given twice"),
        (["--sigmas", "high"], "expected numbers separated by commas"),
        (["--n", "0"], "599 images, 0 asked for; ask for 1 to 599"),
        (["--n", "9999"], "599 images, 9999 asked for"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--reduce", "gapp"], "did you mean 'gap'?"),
        (["--reduce", "grid(0)"], "k must be at least 1"),
        (["--samples", "digit"], "did you mean 'digits'?"),
        (["--split", "test"], "choose from all, train, held-out"),
        (["--device", "cudda"], "unknown device 'cudda'"),
        (["--device", "meta"], "unknown device 'meta'"),
    ],
)
def test_extract_refuses_what_makes_no_sense(
    tiny_study: Path, tmp_path: Path, fail: Any, words: list[str], said: str
) -> None:
    out = tmp_path / "a.h5"
    assert said in fail(2, "extract", tiny_study / "teacher", "-o", out, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nowhere/teacher", "no model at 'nowhere/teacher': expected a run folder"),
        ("pyton:module:function", "did you mean 'python'?"),
        ("python:no_such_module:make", "no module 'no_such_module'"),
        ("python:math:sqrtt", "did you mean 'sqrt'"),
        (".", "'.' is not a model that featlens knows"),
    ],
)
def test_extract_refuses_what_is_no_model(tmp_path: Path, fail: Any, model: str, said: str) -> None:
    assert said in fail(2, "extract", model, "-o", tmp_path / "a.h5")


def test_extract_refuses_a_file_of_another_request(
    tiny_study: Path, tmp_path: Path, fail: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.h5"
    words = ["extract", str(tiny_study / "teacher"), "-o", str(out), "--n", "12", "--sites", "enc.*"]
    assert main([*words, "--sigmas", "0.5"]) == 0
    capsys.readouterr()
    before = out.read_bytes()
    assert "was begun with other settings (sigmas: [0.5] there" in fail(1, *words, "--sigmas", "2.5")
    assert out.read_bytes() == before


@pytest.mark.skipif(
    "torch" in sys.modules and sys.modules["torch"].cuda.is_available(), reason="there is CUDA"
)
@pytest.mark.parametrize("name", ["extract", "sample", "evaluate", "study", "train", "distill"])
def test_a_device_that_is_not_there_is_refused(
    tiny_study: Path, tiny_toml: Path, tmp_path: Path, fail: Any, name: str
) -> None:
    target = tiny_toml if name in ("study", "train", "distill") else tiny_study / "teacher"
    out = {"sample": ["-o", tmp_path / "x.png"], "evaluate": []}.get(name, ["-o", tmp_path / "new"])
    assert "sees no CUDA device; use --device cpu" in fail(2, name, target, *out, "--device", "cuda")
    assert not (tmp_path / "new").exists() and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("sample", ["--n", "0"], "--n and --steps must be at least 1, got 0"),
        ("sample", ["--steps", "0"], "must be at least 1"),
        ("sample", ["-o", "x.jpg"], "expected a name that ends in .png or .npy"),
        ("evaluate", ["--n", "1"], "--n must be at least 2"),
        ("evaluate", ["--steps", "-1"], "--steps at least 1"),
    ],
)
def test_sampling_refuses_impossible_numbers(
    tiny_study: Path, tmp_path: Path, fail: Any, name: str, words: list[str], said: str
) -> None:
    out = ["-o", tmp_path / "x.png"] if name == "sample" else []
    assert said in fail(2, name, tiny_study / "teacher", *out, *words)


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_sampling_refuses_what_is_no_run(tiny_study: Path, tmp_path: Path, fail: Any, name: str) -> None:
    out = ["-o", tmp_path / "x.png"] if name == "sample" else []
    for folder in (tiny_study, tmp_path / "nowhere"):
        assert f"{folder} is not a run (no run.json)" in fail(2, name, folder, *out)
    assert "has no snapshot" in fail(1, name, tiny_study / "classifier", *out)
    (tmp_path / "run.json").write_text("{")
    assert "run.json cannot be read" in fail(1, name, tmp_path, *out)
    (tmp_path / "run.json").write_text("[]")
    assert "is not the record of a featlens run" in fail(1, name, tmp_path, *out)


def test_evaluate_needs_the_classifier_of_the_study(tiny_study: Path, tmp_path: Path, fail: Any) -> None:
    shutil.copytree(tiny_study / STUDENT, tmp_path / STUDENT)
    assert "holds no classifier" in fail(1, "evaluate", tmp_path / STUDENT)


def test_a_damaged_snapshot_is_named(tiny_study: Path, tmp_path: Path, fail: Any) -> None:
    folder = Path(shutil.copytree(tiny_study / STUDENT, tmp_path / STUDENT))
    snapshot = max(folder.glob("snapshots/*/ema.safetensors"))
    data = bytearray(snapshot.read_bytes())
    data[-3] ^= 255
    snapshot.write_bytes(data)
    assert f"{snapshot} is damaged" in fail(1, "sample", folder, "-o", tmp_path / "x.png")
    snapshot.write_bytes(data[:100])
    assert f"{snapshot} is damaged" in fail(1, "inspect", folder)
