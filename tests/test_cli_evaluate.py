"""``featlens evaluate`` and ``sample``: cards, comparisons, best of k, anyone's images and features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featlens import SampleSet
from featlens.cli import main
from featlens_trainers import resolve_study
from featlens_trainers.evaluation import images_of, load_cards
from featlens_trainers.initialisation import seeded
from featlens_trainers.networks import RatioNetwork
from featlens_trainers.runs import newest_snapshot
from featlens_trainers.snapshots import save_ratio

STUDENT = "student-teacher-random-reverse_kl-s0"
QUICK = ("--n", "40", "--resamples", "4")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must succeed and returns its stdout."""

    def run(*words: Any) -> str:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


@pytest.fixture
def student(tiny_study: Path, tiny_toml: Path, tmp_path: Path) -> Path:
    """A student with a ratio network, in a study of its own."""
    study = tmp_path / "study"
    shutil.copytree(tiny_study / STUDENT, study / STUDENT)
    shutil.copytree(tiny_study / "classifier", study / "classifier")
    shutil.copy(tiny_study / "study.toml", study)
    with seeded(0):
        ratio = RatioNetwork(resolve_study(str(tiny_toml)).network, 0.5)
        ratio.head.weight.data.normal_()
    save_ratio(newest_snapshot(study / STUDENT).parent / "ratio.safetensors", ratio)
    return study / STUDENT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty digits as picture files."""
    path = tmp_path / "pictures"
    path.mkdir()
    for index, image in enumerate(SampleSet.load("digits", split="train").images[:30]):
        Image.fromarray(((image[0] + 1) * 127.5).round().astype(np.uint8)).save(path / f"{index:03}.png")
    return path


@pytest.fixture
def means(tmp_path: Path) -> str:
    """An extractor of the user's own."""
    path = tmp_path / "means.py"
    path.write_text("def rows(images):\n    return images.mean(3).flatten(1)\n")
    return f"python:{path}:rows"


# --- cards --------------------------------------------------------------------------------------------------


def test_a_card_holds_every_number_and_what_it_rests_on(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "new" / "card.json"
    text = call("evaluate", tiny_study / STUDENT, *QUICK, "-o", out, "--extrapolate")
    assert text.splitlines()[0].startswith("40 images, 1 evaluations each, against 599 of digits (held-out)")
    assert text.splitlines()[-1] == str(out)
    (card,) = load_cards(out)
    assert set(card.values) == {
        *("frechet", "kid", "kid_blocks", "precision", "recall", "density", "coverage", "frechet_infinity")
    }
    assert f"Frechet {card.values['frechet']:.4f} ± {card.errors['frechet']:.4f}" in text
    assert (card.run, card.seed, card.steps, card.sigma_init) == (str(tiny_study / STUDENT), 0, 1, 2.5)
    assert len(card.weights) == len(card.extractor["digest"]) == len(card.reference_images["digest"]) == 16
    assert card.versions["torch"] and "biased upwards" in card.warnings[0]
    record = json.loads((tiny_study / STUDENT / "run.json").read_text())
    assert card.weights == record["info"]["weights_digest"]


def test_reference_features_are_kept_beside_the_card(tiny_study: Path, tmp_path: Path, call: Any) -> None:
    words = ("evaluate", tiny_study / STUDENT, *QUICK, "--json")
    first = call(*words, "-o", tmp_path / "a.json")
    (kept,) = (tmp_path / "reference-features").iterdir()
    before = kept.stat().st_mtime_ns
    assert call(*words, "-o", tmp_path / "b.json") == first == call(*words)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_differences_from_another_card(tiny_study: Path, tmp_path: Path, call: Any, fail: Any) -> None:
    other = tmp_path / "other.json"
    call("evaluate", tiny_study / "teacher", *QUICK, "--steps", "3", "-o", other)
    words = ("evaluate", tiny_study / STUDENT, *QUICK, "--against", other)
    found = json.loads(call(*words, "--json"))
    row = next(row for row in found["differences"] if row["metric"] == "frechet")
    assert row["difference"] == pytest.approx(found["frechet"] - load_cards(other)[0].values["frechet"])
    assert row["paired"] and row["error"] > 0
    assert f"= {row['difference']:+.4f} ± {row['error']:.4f}" in call(*words)
    again = json.loads(
        call("evaluate", tiny_study / "teacher", *QUICK, "--steps", "3", "--against", other, "--json")
    )
    assert {entry["difference"] for entry in again["differences"]} == {0.0}
    (tmp_path / "broken.json").write_text("{}")
    assert "is no card" in fail(1, *words[:-1], tmp_path / "broken.json")
    assert "no card at" in fail(2, *words[:-1], tmp_path / "nowhere.json")


def test_cards_that_differ_refuse_comparison(
    tiny_study: Path, tmp_path: Path, call: Any, capsys: pytest.CaptureFixture[str], means: str
) -> None:
    other = tmp_path / "other.json"
    call("evaluate", tiny_study / STUDENT, *QUICK, "-o", other)
    for words, said in {
        ("--n", "41"): "n of generated images (41 here, 40 there)",
        ("--extractor", means): "extractor (python:",
        ("--reference", "digits", "--reference-split", "train"): "reference images (digits (train)",
        (
            "--reference",
            "digits",
            "--reference-split",
            "held-out",
            "--reference-n",
            "90",
        ): "(90 here, 599 there)",
    }.items():
        options = dict(zip(QUICK[::2], QUICK[1::2], strict=True)) | dict(
            zip(words[::2], words[1::2], strict=True)
        )
        flat = [word for pair in options.items() for word in pair]
        assert main(["evaluate", str(tiny_study / STUDENT), *flat, "--against", str(other)]) == 2
        err = capsys.readouterr().err
        assert "cannot be compared" in err and said in err


def test_the_study_s_own_reference_is_that_of_its_data_set(tiny_study: Path, call: Any) -> None:
    words = ("evaluate", tiny_study / STUDENT, *QUICK, "--json")
    own = json.loads(call(*words))
    named = json.loads(call(*words, "--reference", "digits", "--reference-split", "held-out"))
    assert named["frechet"] == own["frechet"]
    assert named["reference_images"]["digest"] == own["reference_images"]["digest"]


# --- anything -----------------------------------------------------------------------------------------------


def test_images_of_anyone_with_features_of_anyone(
    folder: Path, means: str, tmp_path: Path, call: Any
) -> None:
    words = (
        "evaluate",
        "--images",
        folder,
        "--reference",
        "digits",
        "--reference-split",
        "held-out",
        "--json",
    )
    found = json.loads(call(*words, "--extractor", f"{means}:range=[0,1]", "--resamples", "4"))
    assert (found["run"], found["generated"], found["reference"]) == (str(folder), 30, 599)
    assert found["network_evaluations"] is None and found["extractor"]["inputs"]["range"] == "[0,1]"
    same = json.loads(
        call("evaluate", "--images", folder, "--reference", folder, *words[-1:], "--extractor", means)
    )
    assert same["frechet"] == pytest.approx(0, abs=1e-6) and same["coverage"] == 1


def test_a_study_s_classifier_measures_other_images(tiny_study: Path, folder: Path, call: Any) -> None:
    words = ("--reference", "digits", "--reference-split", "held-out", "--resamples", "0", "--json")
    found = json.loads(call("evaluate", "--images", folder, "--extractor", tiny_study, *words))
    assert found["extractor"]["name"] == "study classifier" and found["errors"].keys() == {"kid_blocks"}
    half = ("--images-split", "train", "--n", "300")
    floor = json.loads(call("evaluate", "--images", "digits", *half, "--extractor", tiny_study, *words))
    assert floor["generated"] == 300 and floor["frechet"] < found["frechet"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected a RUN or --images PATH"),
        (("RUN", "--images", "x"), "one of the two"),
        (("--images", "PICTURES"), "belongs to no study whose classifier could measure it"),
        (("--images", "PICTURES", "--extractor", "MEANS"), "give --reference LOCATION"),
        (("--images", "PICTURES", "--best-of", "2"), "--best-of and --label are for models"),
        (("RUN", "--best-of", "0,1"), "different numbers from 1"),
        (("RUN", "--best-of", "2,2"), "different numbers from 1"),
        (("RUN", "-o", "x.txt"), "expected a name that ends in .json or .html"),
        (("RUN", "-o", "x.html"), "give --best-of 1,2,4"),
        (("RUN", "--best-of", "1,2", "--against", "x.json"), "give --best-of one number"),
        (("RUN", "--reference-n", "3"), "--reference-n goes with --reference"),
        (("RUN", "--images-values", "[0,1]"), "--images-values goes with --images"),
        (("RUN", "--resamples", "1"), "resamples must be 0"),
        (("RUN", "--label", "3"), "none, it is unconditional"),
        (("RUN", "--sigma-init", "-1"), "--sigma-init must be a number above 0"),
        (("RUN", "--best-of-sigmas", "0"), "best-of sigmas must be"),
        (("RUN", "--n", "3"), "expected at least 6 images, got 3"),
        (("RUN", "--extractor", "nowhere.ts"), "no extractor at 'nowhere.ts'"),
    ],
)
def test_contradictions_are_refused(
    tiny_study: Path, folder: Path, means: str, fail: Any, words: tuple[str, ...], said: str
) -> None:
    there = {"RUN": tiny_study / STUDENT, "PICTURES": folder, "MEANS": means}
    assert said in fail(2, "evaluate", *(there.get(word, word) for word in words))


def test_bad_images_are_named(tiny_study: Path, tmp_path: Path, fail: Any, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    words = ("--extractor", tiny_study, "--reference", "digits")
    assert "no images in it" in fail(1, "evaluate", "--images", tmp_path / "empty", *words)
    images = np.random.default_rng(0).uniform(-1, 1, (20, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "colour.npy", images)
    line = fail(2, "evaluate", "--images", tmp_path / "colour.npy", *words)
    assert "shape (3, 8, 8), the reference digits has (1, 8, 8)" in line
    images[7, 0, 0, 0] = np.nan
    np.save(tmp_path / "nan.npy", images)
    assert "image 7" in fail(2, "evaluate", "--images", tmp_path / "nan.npy", *words)
    np.save(tmp_path / "unit.npy", np.abs(images[8:, :1]))
    assert "values" in fail(1, "evaluate", "--images", tmp_path / "unit.npy", *words)
    known = ("--images-values", "[0,1]", "--resamples", "0")
    assert main([str(word) for word in ("evaluate", "--images", tmp_path / "unit.npy", *known, *words)]) == 0
    capsys.readouterr()
    line = fail(2, "evaluate", tiny_study / STUDENT, "--reference", tmp_path / "colour.npy")
    assert "give a reference of the same shape with --reference" in line


# --- best of k ----------------------------------------------------------------------------------------------


def test_distance_against_k(student: Path, tmp_path: Path, call: Any, parse_page: Any) -> None:
    words = ("evaluate", student, *QUICK, "--best-of", "1,2,4")
    page, data = tmp_path / "k.html", tmp_path / "k.json"
    lines = call(*words, "-o", page).splitlines()
    assert lines[1].split()[:2] == ["k", "frechet"] and [line.split()[0] for line in lines[2:5]] == [
        "1",
        "2",
        "4",
    ]
    found = json.loads(call(*words, "-o", data, "--json"))
    cards = load_cards(data)
    assert [card.best_of for card in cards] == [1, 2, 4] == [card["best_of"] for card in found["cards"]]
    assert [card.network_evaluations for card in cards] == [1, 2, 4]
    plain = json.loads(call("evaluate", student, *QUICK, "--json"))
    assert cards[0].values["frechet"] == plain["frechet"] != cards[1].values["frechet"]
    assert f"{cards[2].values['frechet']:.4f} ± {cards[2].errors['frechet']:.4f}" in lines[4]
    parsed = parse_page(page)
    (figure,) = parsed.figures("featlensPlot")
    shown = {trace["name"]: trace for trace in figure["data"]}
    assert shown["frechet"]["y"] == pytest.approx([card.values["frechet"] for card in cards])
    assert shown["kid"]["error_y"]["array"] == pytest.approx([2 * card.errors["kid"] for card in cards])
    assert "Distance against candidates" in parsed.text


def test_sample_keeps_the_best_of_k(student: Path, tmp_path: Path, call: Any) -> None:
    plain, one, best, levels = (tmp_path / f"{name}.npy" for name in ("plain", "one", "best", "levels"))
    call("sample", student, "-o", plain, "--n", "12")
    call("sample", student, "-o", one, "--n", "12", "--best-of", "1")
    said = json.loads(call("sample", student, "-o", best, "--n", "12", "--best-of", "4", "--json"))
    assert said["best_of"] == 4 and said["network_evaluations"] == 4
    call("sample", student, "-o", levels, "--n", "5", "--best-of", "4", "--best-of-sigmas", "0.1,1")
    assert plain.read_bytes() == one.read_bytes()
    kept = np.abs(np.load(best) - np.load(plain)).max((1, 2, 3)) < 1e-6
    assert 0 < kept.sum() < 12
    assert np.load(levels).shape == (5, 1, 8, 8)


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_a_run_without_a_ratio_network(tiny_study: Path, tmp_path: Path, fail: Any, name: str) -> None:
    out = ["-o", tmp_path / "x.png"] if name == "sample" else []
    folder = Path(shutil.copytree(tiny_study / STUDENT, tmp_path / STUDENT))
    for ratio in folder.rglob("ratio.safetensors"):
        ratio.unlink()
    assert "holds no ratio network" in fail(1, name, folder, "--best-of", "2", *out)
    assert "--best-of must be at least 1" in fail(
        2, "sample", folder, "--best-of", "0", "-o", tmp_path / "x.png"
    )


def test_a_single_training_is_measured_against_what_it_held_out(
    student: Path, tmp_path: Path, call: Any
) -> None:
    """Of a folder without study.toml the run says which images it did not see, of which file and how many."""
    images = SampleSet.load("digits", split="train").images
    np.save(tmp_path / "mine.npy", (images[:200] + 1) / 2)
    (student.parent / "study.toml").unlink()
    path = student / "run.json"
    record = json.loads(path.read_text())
    mine = str(tmp_path / "mine.npy")
    record["config"] |= {"data": mine, "values": "[0,1]", "holdout": 60, "seed": 7}
    path.write_text(json.dumps(record))
    text = call("evaluate", student, *QUICK, "-o", tmp_path / "card.json")
    assert text.splitlines()[0].startswith(f"40 images, 1 evaluations each, against 60 of {mine} (held-out)")
    held = SampleSet.load(mine, seed=7, split="held-out", values="[0,1]", holdout=60)
    (card,) = load_cards(tmp_path / "card.json")
    assert card.reference_images["digest"] == images_of(held, "held").digest()


def test_a_file_of_several_cards_is_refused_before_anything_is_drawn(
    student: Path, tmp_path: Path, call: Any, fail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("evaluate", student, *QUICK, "--best-of", "1,2", "-o", tmp_path / "k.json")
    monkeypatch.setattr("featlens_trainers.cli.evaluate._measured", lambda *_: pytest.fail("measured"))
    assert "holds 2 cards" in fail(2, "evaluate", student, *QUICK, "--against", tmp_path / "k.json")
