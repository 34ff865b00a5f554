"""Every command with good input: what it writes, what it prints, and that it can be repeated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featlens import Comparison, FeatureStore
from featlens.cli import main

STUDENT = "student-teacher-random-reverse_kl-s0"


@pytest.fixture
def study(tiny_study: Path, tmp_path: Path) -> Path:
    """A copy of the study that a test may change."""
    return Path(shutil.copytree(tiny_study, tmp_path / "study"))


@pytest.fixture
def pair(tmp_path: Path, make_store: Callable[..., Any]) -> tuple[Path, Path]:
    """Two feature files of the same samples."""
    paths = tmp_path / "a.h5", tmp_path / "b.h5"
    for seed, path in enumerate(paths):
        make_store(path, sigmas=(0.5, 2.5), seed=seed, labels=np.arange(60) % 3)
    return paths


# --- extract and inspect ------------------------------------------------------------------------------------


def extraction(model: Path, out: Path) -> tuple[Any, ...]:
    return ("extract", model, "-o", out, "--n", "20", "--sites", "enc.*", "--sigmas", "0.5,2.5")


def test_extract_writes_a_file_and_says_where(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "new" / "teacher.h5"
    assert call(*extraction(tiny_study / "teacher", out)) == f"{out}\n"
    with FeatureStore(out) as store:
        assert store.complete and len(store) == 20
        assert store.sigmas.tolist() == [0.5, 2.5]
        assert all(site.startswith("enc.") for site in store.sites)
        assert store.manifest["model"] == str(tiny_study / "teacher")


def test_extract_again_changes_nothing(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "teacher.h5"
    call(*extraction(tiny_study / "teacher", out))
    before = out.read_bytes()
    found = json.loads(call(*extraction(tiny_study / "teacher", out), "--json"))
    assert out.read_bytes() == before
    assert found["file"] == str(out) and found["n"] == 20 and found["sigmas"] == [0.5, 2.5]


def test_extract_of_a_snapshot_equals_extract_of_its_run(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    snapshot = max((tiny_study / "teacher" / "snapshots").glob("img-*"))
    a, b = tmp_path / "a.h5", tmp_path / "b.h5"
    call(*extraction(tiny_study / "teacher", a))
    call(*extraction(snapshot / "ema.safetensors", b), "--batch", "7")
    with FeatureStore(a) as one, FeatureStore(b) as two:
        site = next(iter(one.sites))
        np.testing.assert_allclose(one.read(site, 0.5), two.read(site, 0.5), rtol=1e-4, atol=1e-5)


def test_extract_dry_run_writes_nothing(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    words = extraction(tiny_study / "teacher", tmp_path / "a.h5")
    table = call(*words, "--dry-run")
    assert "enc.8x8_conv    Conv2d" in table and "x 2 sigmas x 20 samples:" in table and "s a batch" in table
    said = json.loads(call(*words, "--dry-run", "--json"))
    assert said["plan"]["bytes"] == sum(site["bytes"] for site in said["plan"]["sites"]) > 0
    assert said["n"] == 20 and said["sigmas"] == [0.5, 2.5] and len(said["sample_digest"]) == 16
    assert not (tmp_path / "a.h5").exists()


def test_inspect_shows_a_file(pair: tuple[Path, Path], call: Any) -> None:
    text = call("inspect", pair[0])
    assert "enc.conv" in text and "sample_digest" in text and "[0.5, 2.5]" in text
    found = json.loads(call("inspect", pair[0], "--json"))
    assert found["complete"] and found["samples"] == 60 and found["labelled"]
    assert [site["name"] for site in found["sites"]] == ["enc.conv", "dec.conv"]


def test_inspect_verify_names_damage(tmp_path: Path, make_store: Any, capsys: Any) -> None:
    path = tmp_path / "a.h5"
    written = make_store(path, n=40)
    assert main(["inspect", str(path), "--verify"]) == 0
    assert "verified: all rows can be read, their checksums agree" in capsys.readouterr().out
    data = bytearray(path.read_bytes())
    data[data.find(written["dec.conv", 0.5].tobytes()[:64]) + 8] ^= 1
    path.write_bytes(data)
    assert main(["inspect", str(path), "--verify"]) == 1
    assert "DAMAGED: site 'dec.conv', sigma 0.5, rows 0 to 40" in capsys.readouterr().out
    assert main(["inspect", str(path), "--verify", "--json"]) == 1
    (damage,) = json.loads(capsys.readouterr().out)["damage"]
    assert (damage["site"], damage["sigma"], damage["start"], damage["stop"]) == ("dec.conv", 0.5, 0, 40)
    assert main(["inspect", "runs/none", "--verify"]) == 2
    assert "--verify reads feature files" in capsys.readouterr().err


def test_inspect_makes_the_words_of_a_file_safe(tmp_path: Path, make_store: Any, call: Any) -> None:
    import h5py

    make_store(tmp_path / "a.h5", n=8)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["manifest"] = json.dumps({"model": "\x1b[2Jevil", "\x1b]0;title": 1})
    text = call("inspect", tmp_path / "a.h5")
    assert "\x1b" not in text and "\\x1b[2Jevil" in text


def test_inspect_shows_a_model(tiny_study: Path, call: Any) -> None:
    found = json.loads(call("inspect", tiny_study / "teacher", "--json"))
    record = json.loads((tiny_study / "teacher" / "run.json").read_text())
    assert found["sample_shape"] == [1, 8, 8] and found["parameters"] > 1000
    assert any(site["name"].startswith("enc.8x8") for site in found["sites"])
    assert len(found["weights_digest"]) == 16 and record["status"] == "done"


# --- compare and probe --------------------------------------------------------------------------------------


def test_compare_prints_the_best_matches(pair: tuple[Path, Path], call: Any) -> None:
    lines = call("compare", *pair, "--permutations", "20").splitlines()
    assert lines[0].split()[:4] == ["A", "a", "B", "b"] and "n 60" in lines[0]
    assert sum(line.split()[:1] in (["0.5"], ["2.5"]) for line in lines) == 4


def test_compare_of_a_file_with_itself_finds_every_site(pair: tuple[Path, Path], call: Any) -> None:
    found = json.loads(call("compare", pair[0], pair[0], "--permutations", "30", "--json"))
    same = [cell for cell in found["cells"] if cell["site_a"] == cell["site_b"]]
    assert len(same) == 4 and all(cell["value"] > 0.999 and cell["p_family"] < 0.05 for cell in same)
    assert found["provenance"]["permutations"] == 30


@pytest.mark.parametrize("suffix", [".html", ".nc", ".csv"])
def test_compare_writes_what_the_name_says(
    pair: tuple[Path, Path], tmp_path: Path, call: Any, suffix: str
) -> None:
    out = tmp_path / "new" / f"result{suffix}"
    words = ["--embedding", "pca"] if suffix == ".html" else []
    assert call("compare", *pair, "-o", out, "--permutations", "5", "--sigmas", "2.5", *words) == f"{out}\n"
    if suffix == ".nc":
        assert Comparison.load(out).data.sizes["sigma"] == 1
    else:
        assert ("<!DOCTYPE html>" if suffix == ".html" else "site_a") in out.read_text(encoding="utf-8")


def test_compare_is_the_same_for_the_same_seed(pair: tuple[Path, Path], call: Any) -> None:
    words = ("compare", *pair, "--json", "--permutations", "10")
    assert call(*words, "--seed", "1") == call(*words, "--seed", "1") != call(*words, "--seed", "2")


def test_compare_dry_run(pair: tuple[Path, Path], call: Any) -> None:
    assert json.loads(call("compare", *pair, "--dry-run", "--permutations", "7"))["permutations"] == 7


def test_probe_prints_a_table_and_the_best_cell(pair: tuple[Path, Path], call: Any) -> None:
    lines = call("probe", pair[0], "--splits", "2", "--permutations", "3").splitlines()
    assert lines[0].split() == ["site", "0.5", "2.5"]
    assert [line.split()[0] for line in lines[1:3]] == ["enc.conv", "dec.conv"]
    assert lines[3].startswith("best by validation: ") and "2 splits" in lines[4]


@pytest.mark.parametrize("suffix", [".json", ".nc", ".csv"])
def test_probe_writes_what_the_name_says(
    pair: tuple[Path, Path], tmp_path: Path, call: Any, suffix: str
) -> None:
    out = tmp_path / "new" / f"probe{suffix}"
    words = ("probe", pair[0], "--sites", "enc.*", "--splits", "1", "--permutations", "2")
    assert call(*words, "-o", out) == f"{out}\n"
    assert out.stat().st_size > 100


def test_probe_without_permutations_is_still_json(pair: tuple[Path, Path], call: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = call("probe", pair[0], "--splits", "1", "--permutations", "0", "--json")
    found = json.loads(text, parse_constant=refuse)
    assert found["best"]["chance"] is None and found["cells"][0]["chance_high"] is None


# --- sample and evaluate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["teacher", STUDENT])
def test_sample_writes_a_grid(tiny_study: Path, tmp_path: Path, call: Any, name: str) -> None:
    out = tmp_path / "new" / "grid.png"
    assert call("sample", tiny_study / name, "-o", out, "--n", "9", "--steps", "3") == f"{out}\n"
    with Image.open(out) as picture:
        assert picture.size == (26, 26)  # three digits of 8 pixels with two lines between them


def test_sample_images_depend_on_seed_and_number_only(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    few, many, other = (tmp_path / f"{name}.npy" for name in ("few", "many", "other"))
    said = json.loads(call("sample", tiny_study / STUDENT, "-o", few, "--n", "3", "--json"))
    call("sample", tiny_study / STUDENT, "-o", many, "--n", "7")
    call("sample", tiny_study / STUDENT, "-o", other, "--n", "3", "--seed", "1")
    assert said == {"file": str(few), "n": 3, "seed": 0, "network_evaluations": 1}
    images = np.load(few)
    assert images.shape == (3, 1, 8, 8) and images.dtype == np.float32
    np.testing.assert_allclose(images, np.load(many)[:3], atol=1e-5)
    assert np.abs(images - np.load(other)).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "steps", "evaluations"), [("teacher", 3, 5), ("teacher", 1, 1), (STUDENT, 3, 1)]
)
def test_evaluate(tiny_study: Path, call: Any, name: str, steps: int, evaluations: int) -> None:
    words = ("evaluate", tiny_study / name, "--n", "40", "--steps", str(steps))
    found = json.loads(call(*words, "--json"))
    assert found["network_evaluations"] == evaluations
    assert found["frechet"] > 0 and found["generated"] == 40 and found["reference"] == 599
    assert f"Frechet {found['frechet']:.4f}" in call(*words)


# --- train, distill, study, report --------------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run without worker processes, whose start takes longer than the work."""
    import featlens_trainers.study

    run_jobs = featlens_trainers.study.run_jobs
    monkeypatch.setattr(
        featlens_trainers.study,
        "run_jobs",
        lambda jobs, workers, monitor, **options: run_jobs(jobs, 0, monitor, **options),
    )


@pytest.mark.usefixtures("in_process")
def test_train_of_a_finished_run_says_what_it_found(study: Path, tiny_toml: Path, call: Any) -> None:
    before = (study / "teacher" / "run.json").read_bytes()
    lines = call("train", tiny_toml, "-o", study).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["heun", "one_step", "training_images"]
    assert lines[-1] == str(study / "teacher")
    assert (study / "teacher" / "run.json").read_bytes() == before


@pytest.mark.usefixtures("in_process")
def test_train_and_distill_work_in_a_new_folder(tmp_path: Path, tiny_toml: Path, call: Any) -> None:
    folder = tmp_path / "runs"
    record = json.loads(
        call("distill", tiny_toml, "-o", folder, "--init", "random", "--student-seed", "3", "--json")
    )
    assert record["status"] == "done" and record["config"]["student_seed"] == 3
    assert not (folder / "teacher").exists(), "a random start needs no teacher"
    control = json.loads(call("train", tiny_toml, "-o", folder, "--what", "single_sigma", "--json"))
    assert control["kind"] == "single_sigma" and control["config"]["teacher"]["sigma"] == 2.5


def test_dry_runs_write_nothing(tmp_path: Path, tiny_toml: Path, call: Any) -> None:
    folder = tmp_path / "new"
    said = json.loads(call("distill", tiny_toml, "-o", folder, "--dry-run", "--divergence", "js", "--json"))
    assert said["folder"].endswith("student-teacher-random-js-s0")
    text = call("study", tiny_toml, "-o", folder, "--dry-run", "--seeds", "0,1", "--full")
    assert "student-map_regressed-teacher-reverse_kl-s1  (after teacher, map_regressed)" in text
    assert not folder.exists()


@pytest.mark.usefixtures("in_process")
def test_study_again_prints_the_table_and_the_report(study: Path, tiny_toml: Path, call: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}
    lines = call("study", tiny_toml, "-o", study, "--jobs", "2").splitlines()
    assert lines[0].split()[0] == "initialisation" and lines[-1] == str(study / "report.html")
    assert {line.split()[0] for line in lines[1:4]} == {"teacher", "single_sigma", "random"}
    assert before == {path: path.stat().st_mtime_ns for path in study.rglob("*.safetensors")}


def test_report_is_written_again(study: Path, tmp_path: Path, call: Any) -> None:
    (study / "report.html").unlink()
    assert call("report", study).splitlines()[-1] == str(study / "report.html")
    assert (study / "report.html").stat().st_size > 1_000_000
    out = tmp_path / "new" / "page.html"
    found = json.loads(call("report", study, "-o", out, "--json"))
    assert found["format"] == "featlens.study" and out.stat().st_size > 1_000_000
