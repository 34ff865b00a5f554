"""``featlens compare`` on wrong input: one line that names what is wrong, and exit code 1 or 2."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featlens.cli import main
from featlens.store import FeatureWriter, SiteInfo

WRONG = {
    "missing": "there is no such file",
    "folder": "this is a folder",
    "empty": "found an empty file",
    "text": "expected a feature file (HDF5), found something else",
    "foreign": "found another HDF5 file",
    "truncated": "is truncated",
    "damaged": "damaged",
    "incomplete": "is incomplete: 67 of 120 rows",
}


def spoil(good: Path, kind: str) -> Path:
    """A file that is wrong in one way, beside a good one."""
    wrong = good.parent / "wrong.h5"
    whole = good.read_bytes()
    if kind == "folder":
        wrong.mkdir()
    elif kind == "foreign":
        with h5py.File(wrong, "w") as file:
            file["x"] = np.arange(3)
    elif kind == "incomplete":
        shutil.copy(good, wrong)
        with h5py.File(wrong, "r+") as file:
            file.attrs["complete"] = 0
            file["rows_done"][1] = 7
    elif kind != "missing":
        damaged = whole[:600] + b"\xff" * 64 + whole[664:]
        wrong.write_bytes(
            {"empty": b"", "text": b"no", "truncated": whole[: len(whole) // 2], "damaged": damaged}[kind]
        )
    return wrong


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_named(a: Path, fail: Any, kind: str) -> None:
    wrong = spoil(a, kind)
    for words in ([a, wrong], [wrong, a], [a, a, f"third={wrong}"]):
        line = fail(1, "compare", *words)
        assert str(wrong) in line and WRONG[kind] in line


def test_damaged_rows_are_named(tmp_path: Path, make_store: Any, fail: Any) -> None:
    written = make_store(tmp_path / "a.h5", n=60)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[data.find(written["dec.conv", 0.5].tobytes()[:64]) + 8] ^= 1
    (tmp_path / "b.h5").write_bytes(data)
    line = fail(1, "compare", tmp_path / "a.h5", tmp_path / "b.h5", "--permutations", "5")
    assert f"{tmp_path / 'b.h5'}: site 'dec.conv', sigma 0.5, rows 0..60" in line


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"sample_digest": "d2"}, 1, "other samples or other noise"),
        ({"n": 50}, 1, "other samples or other noise"),
        ({"sigmas": (0.1,)}, 2, "none is common"),
    ],
)
def test_files_that_do_not_match(
    a: Path, make_store: Any, fail: Any, options: dict[str, Any], code: int, said: str
) -> None:
    b = a.parent / "b.h5"
    make_store(b, **{"sigmas": (0.5, 2.5), **options})
    assert said in fail(code, "compare", a, b)
    if code == 1:
        line = fail(code, "compare", a, b)
        assert str(a) in line and str(b) in line and "--samples, --split, --n and --seed" in line


def test_other_samples_are_compared_where_that_is_wanted(
    a: Path, make_store: Any, fail: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(a.parent / "b.h5", sample_digest="d2")
    words = ["compare", str(a), str(a.parent / "b.h5"), "--allow-other-samples", "--permutations", "5"]
    assert main(words) == 0
    capsys.readouterr()
    make_store(a.parent / "c.h5", n=50)
    line = fail(2, *words[:2], a.parent / "c.h5", *words[3:])
    assert "'a' has 60 samples, 'c' 50" in line


def test_other_inputs_are_refused(tmp_path: Path, fail: Any) -> None:
    for name, inputs in (("a", "noised"), ("b", "latents")):
        manifest = {"sample_digest": "d", "inputs": inputs}
        with FeatureWriter.create(
            tmp_path / f"{name}.h5", [SiteInfo("x", 0, 2)], [1.0], range(9), manifest
        ) as it:
            it.append(0, {"x": np.random.default_rng(0).normal(size=(9, 2)).astype("f4")})
    line = fail(1, "compare", tmp_path / "a.h5", tmp_path / "b.h5")
    assert "noised inputs" in line and "latents ones" in line and "--inputs" in line


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_named(tmp_path: Path, fail: Any, bad: float) -> None:
    rng = np.random.default_rng(0)
    for name in "ab":
        sites = [SiteInfo("enc", 0, 3), SiteInfo("dec", 1, 3)]
        with FeatureWriter.create(tmp_path / f"{name}.h5", sites, [0.5, 2.5], range(60), {}) as writer:
            for index in range(2):
                rows = {site.name: rng.normal(size=(60, 3)).astype("f4") for site in sites}
                if (name, index) == ("b", 1):
                    rows["dec"][17, 1] = bad
                writer.append(index, rows)
    line = fail(2, "compare", tmp_path / "a.h5", tmp_path / "b.h5", "--permutations", "5")
    assert "'dec'" in line and "'b'" in line and "2.5" in line and "row 17" in line
    assert main(["compare", *(str(tmp_path / f"{name}.h5") for name in "ab"), "--sites", "enc"]) == 0


def test_too_few_samples(tmp_path: Path, make_store: Any, fail: Any) -> None:
    for name in "ab":
        make_store(tmp_path / f"{name}.h5", n=3)
    assert "at least 4 samples, there are 3" in fail(2, "compare", tmp_path / "a.h5", tmp_path / "b.h5")


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sites", "enc.konv"], "did you mean 'enc.conv'"),
        (["--sites", "none.*"], "no site 'none.*' in"),
        (["--sites", ","], "expected site names or patterns separated by commas"),
        (["--sigmas", "0.7"], "0.5, 2.5"),
        (["--sigmas", "0.5,high"], "expected numbers separated by commas, got '0.5,high'"),
        (["--measure", "ckaa"], "did you mean 'cka'"),
        (["--measure", "cka(estimate=biased)"], "did you mean 'estimator'?"),
        (["--measure", "cka(estimator=bias)"], "did you mean 'biased'"),
        (["--measure", "cka(biased)"], "expected NAME or NAME(option=value, ...)"),
        (["--measure", "cka(estimator=biased"], "expected NAME or NAME(option=value, ...)"),
        (["--measure", ""], "separated by commas, got ''"),
        (["--reference", "A"], "unknown reference 'A'"),
        (["--permutations", "-1"], "--permutations must be 0 or more, got -1"),
        (["--permutations", "1.5"], "invalid int value: '1.5'"),
        (["--resamples", "-1"], "--resamples must be 0 or more, got -1"),
        (["--rows", "0"], "--rows must be 1 or more, got 0"),
        (["--rows", "3"], "at least 4 samples, there are 3"),
        (["--level", "95"], "--level must be between 0 and 1, such as 0.95, got 95"),
        (["--level", "nan"], "--level must be between 0 and 1"),
        (["--memory", "much"], "expected a size such as 500MB or 10GB"),
        (["--memory", "1KB"], "memory must be at least"),
        (["--plan", "fast"], "invalid choice: 'fast'"),
        (["--device", "cudda"], "unknown device 'cudda'"),
        (["--draw", "x.h5"], "expected NAME=FILE, such as a (1)=other-noise.h5"),
        (["--draw", "b=x.h5"], "no model is called 'b'"),
        (["--draw", "a (1)=runs/x"], "expected a feature file"),
        (["-o", "page.pdf"], "expected a name that ends in .html, .nc or .csv"),
        (["-o", "folder"], "expected a name that ends in .html, .nc or .csv"),
        (["--embedding", "pca"], "--embedding is for the page; write one with -o NAME.html"),
        (["--embed-site", "enc.conv", "-o", "x.csv"], "--embed-site is for the page"),
        (["--embed-site", "enc.konv", "-o", "x.html"], "did you mean 'enc.conv'"),
        (["--embed-site", "enc.conv=dec.konv", "-o", "x.html"], "did you mean 'dec.conv'"),
        (["--embed-sigma", "7", "-o", "x.html"], "has no sigma 7; it has 0.5, 2.5"),
        (["--embedding", "tsne", "-o", "x.html"], "invalid choice: 'tsne'"),
        (["--n", "5"], "leave it out; --rows compares a part of the samples"),
        (["--samples", "digits"], "--samples is for models that are extracted"),
        (["--noise-seed", "1"], "--noise-seed is for models that are extracted"),
        (["--permutation", "5"], "did you mean '--permutations'"),
    ],
)
def test_wrong_options_are_one_line(a: Path, fail: Any, words: list[str], said: str) -> None:
    assert said in fail(2, "compare", a, a, *words)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_draw_is_named_first(a: Path, fail: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("featlens.comparison.compare", None)
    wrong = spoil(a, kind)
    line = fail(1, "compare", f"x={a}", a, "--draw", f"x={wrong}")
    assert str(wrong) in line and WRONG[kind] in line


def test_one_argument_is_not_enough(a: Path, fail: Any) -> None:
    assert "the following arguments are required: B" in fail(2, "compare", a)
    assert "the following arguments are required: A, B" in fail(2, "compare")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x=a.h5", "x=b.h5"], "the name 'x' is given twice"),
        (["=a.h5", "b.h5"], "expected NAME=PATH, with a name and a path"),
        (["x=", "b.h5"], "expected NAME=PATH, with a name and a path"),
    ],
)
def test_wrong_names(fail: Any, words: list[str], said: str) -> None:
    assert said in fail(2, "compare", *words)


# --- outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".html", ".nc", ".csv"])
def test_an_output_that_cannot_be_written_is_refused_first(
    a: Path, fail: Any, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def compare(*args: Any, **options: Any) -> None:
        raise AssertionError("the work was done before the output was looked at")

    monkeypatch.setattr("featlens.comparison.compare", compare)
    (a.parent / f"is{suffix}").mkdir()
    assert "this is a folder" in fail(1, "compare", a, a, "-o", a.parent / f"is{suffix}")
    for out in (a / f"x{suffix}", a / "deeper" / f"x{suffix}"):
        line = fail(1, "compare", a, a, "-o", out)
        assert str(out) in line and "a part of the path is a file" in line
    if Path("/sys/kernel").is_dir():
        assert "choose another output with -o" in fail(1, "compare", a, a, "-o", f"/sys/kernel/x{suffix}")
    assert not (a.parent / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(a: Path, fail: Any) -> None:
    (a.parent / "closed").mkdir(mode=0o500)
    assert "permission denied" in fail(1, "compare", a, a, "-o", a.parent / "closed" / "x.csv")


def test_a_full_disk_leaves_the_old_result(a: Path, command: Callable[..., Any]) -> None:
    out = a.parent / "x.csv"
    out.write_text("an earlier result")
    done = command("compare", a, a, "--permutations", "2", "-o", out, limit=100)
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1 and f"{out}: the file size limit" in done.stderr
    assert out.read_text() == "an earlier result"
    assert sorted(path.name for path in a.parent.iterdir()) == ["a.h5", "x.csv"]


def test_a_reader_that_has_gone(a: Path, command: Callable[..., Any]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = command("compare", a, a, "--permutations", "0", "--json", stdout=write)
    finally:
        os.close(write)
    assert done.stderr == "" and done.returncode == 1


SLOW = """
import sys, time
import featlens.comparison
from featlens.cli import main

def compare(*args, **options):
    print("begun", flush=True)
    time.sleep(60)

featlens.comparison.compare = compare
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_is_one_line(a: Path) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "compare", str(a), str(a)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err == "featlens compare: interrupted; run the same command again to continue\n"
