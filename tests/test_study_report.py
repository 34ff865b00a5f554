"""The report of a study: every section, every student, its limits, and what an unfinished one misses."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featlens_trainers import Study, StudyConfig, study_figures
from featlens_trainers.results import collect, summarise, write_results
from featlens_trainers.study_report import grid, result_lines, summary_rows, write_report
from featlens_trainers.study_text import KEEPS, short_name, what_came_out

INITS = ("teacher", "single_sigma", "random")
SECTIONS = [
    "What came out",
    "Distance against images seen",
    "What each initialisation keeps",
    "Samples",
    "Features: students against the teacher",
    "Linear probes: class by site and noise level",
    "What was run",
]


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def study(tiny_study: Path, tmp_path: Path) -> Study:
    return Study.open(shutil.copytree(tiny_study, tmp_path / "study"))


@pytest.fixture
def results(tiny_study: Path) -> Any:
    return strict((tiny_study / "results.json").read_text())


@pytest.fixture
def page(tiny_study: Path, parse_page: Any) -> Any:
    return parse_page(tiny_study / "report.html")


def sections(page: Any) -> list[str]:
    marks = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    links = page.attributes("href")
    assert [f"#{mark}" for mark in marks] == links
    return [word for word in page.words if word in SECTIONS][: len(marks)]


# --- the page of a finished study ---------------------------------------------------------------------------


def test_every_section_is_there(page: Any) -> None:
    assert sections(page) == SECTIONS


def test_there_is_a_grid_of_everything_that_makes_images(tiny_study: Path, page: Any) -> None:
    names = ["held-out images", "the teacher itself", *(f"start: {init}" for init in INITS)]
    assert page.attributes("alt") == names
    files = sorted(path.name for path in (tiny_study / "samples").iterdir())
    students = [f"student-{init}-random-reverse_kl-s0.png" for init in INITS]
    assert files == sorted(["held-out.png", "teacher.png", *students])
    for name in files:
        with Image.open(tiny_study / "samples" / name) as picture:
            assert picture.size == (35, 35)  # 4 x 4 digits
            assert np.asarray(picture).std() > 10


def test_the_grid_of_a_student_shows_its_own_samples(tiny_study: Path) -> None:
    name = "student-random-random-reverse_kl-s0"
    images = np.load(tiny_study / name / "samples.npy")
    with Image.open(tiny_study / "samples" / f"{name}.png") as picture:
        first = np.asarray(picture)[:8, :8]
    expected = np.clip((images[0, 0] + 1) * 127.5, 0, 255)
    assert np.abs(first - expected).max() <= 1


def test_there_is_a_curve_for_every_initialisation(page: Any, results: Any) -> None:
    final, frechet, kid, cka, probes = page.figures("featlensPlot")
    for chart in (frechet, kid, cka, probes):
        assert set(INITS) <= {trace.get("name") for trace in chart["data"]}
    assert {name for trace in final["data"] for name in trace["y"]} == set(INITS)
    assert "untrained network" in {trace.get("name") for trace in cka["data"]}
    assert "the teacher itself" in {trace["name"] for trace in probes["data"]}
    assert frechet["layout"]["yaxis"]["type"] == "log"
    said = [annotation["text"] for annotation in frechet["layout"]["annotations"]]
    assert said == ["training images", "teacher, Heun steps"]


def test_the_band_of_same_sites_is_the_mean_of_their_intervals(results: Any) -> None:
    chart = study_figures.cka_by_sigma(results)
    for init in INITS:
        cka = results["features"][f"student-{init}-random-reverse_kl-s0"]["cka"]
        (band,) = [trace for trace in chart.data if trace.fill and trace.legendgroup == init]
        ends = [np.mean(list(cka[f"same_site_{end}"].values()), axis=0) for end in ("low", "high")]
        np.testing.assert_allclose(band.y, [*ends[1], *ends[0][::-1]])
        for site, values in cka["same_site"].items():
            assert np.all(np.array(cka["same_site_low"][site]) <= values)
            assert np.all(np.array(cka["same_site_high"][site]) >= values)


def test_with_several_seeds_the_band_goes_from_the_lowest_end_to_the_highest(results: Any) -> None:
    several = copy.deepcopy(results)
    name = "student-random-random-reverse_kl-s0"
    (first,) = [student for student in several["students"] if student["name"] == name]
    several["students"].append(first | {"name": "other", "seed": 1})
    other = copy.deepcopy(several["features"][name])
    for key in ("same_site", "same_site_low", "same_site_high"):
        other["cka"][key] = {site: [v + 0.01 for v in values] for site, values in other["cka"][key].items()}
    several["features"]["other"] = other
    one, two = (study_figures.cka_by_sigma(found) for found in (results, several))
    narrow, wide = (
        next(t for t in chart.data if t.fill and t.legendgroup == "random").y for chart in (one, two)
    )
    half = len(narrow) // 2
    np.testing.assert_allclose(wide[:half], np.array(narrow[:half]) + 0.01)
    np.testing.assert_allclose(wide[half:], narrow[half:])


def test_there_is_a_heat_map_for_every_student_and_sigma(page: Any, results: Any) -> None:
    cka, probes = page.figures("featlensExplorer")
    names = [*INITS, "untrained network"]
    assert list(cka["panels"]) == [f"{name}|{sigma}" for name in names for sigma in ("0.5", "2.5")]
    for panel in cka["panels"].values():
        assert "95 % interval" in panel["text"][0][0] and "null: 95 % below" in panel["text"][0][0]
        assert panel["x"] == panel["y"] and len(panel["x"]) > 5
        assert np.array(panel["z"], dtype=float).shape == (len(panel["y"]), len(panel["x"]))
    assert set(probes["panels"]) == {*INITS, "untrained network", "the teacher itself"}
    assert all(panel["x"] == ["0.5", "2.5"] for panel in probes["panels"].values())
    values = [value for panel in probes["panels"].values() for row in panel["z"] for value in row]
    assert all(0 <= value <= 1 for value in values) and max(values) > 0.2


def test_the_page_says_what_was_run(page: Any, results: Any, tiny_study: Path) -> None:
    for name, version in results["versions"].items():
        assert name in page.words and version in page.words
    for word in ("classifier", "teacher", *(student["name"] for student in results["students"])):
        assert word in page.words
    assert results["runs"]["teacher"]["weights_digest"] in page.words
    (settings,) = [word for word in page.words if word.startswith("featlens study ")]
    assert (tiny_study / "study.toml").read_text().strip() in settings
    assert "seeds = [" in settings and "1 session(s)" in page.text and "with 0 jobs on cpu" in page.text
    assert "images to fit and to choose the penalty" in page.text and "on 599 held-out images" in page.text


def test_the_page_gives_every_initialisation_its_meaning(page: Any) -> None:
    for init in INITS:
        assert KEEPS[init][0] in page.words and KEEPS[init][1] in page.words


# --- what it claims -----------------------------------------------------------------------------------------


def test_one_seed_supports_no_verdict(page: Any, study: Study, results: Any) -> None:
    assert "One seed: " in page.text and "supports no verdict" in page.text
    config = dataclasses.replace(study.config, seeds=(0, 1, 2))
    said = " ".join(what_came_out(config, results))
    assert "One seed" not in said and "3 seeds: ranges are smallest and largest value" in said


def test_the_order_is_that_of_the_distances(study: Study, results: Any) -> None:
    first = what_came_out(study.config, results)[0]
    ranked = sorted(results["summary"], key=lambda row: row["frechet"][0])
    assert first.endswith(", ".join(f"{row['init']} {row['frechet'][0]:.3f}" for row in ranked) + ".")


def test_names_hold_only_what_varies(results: Any) -> None:
    assert [short_name(student, results) for student in results["students"]] == list(INITS)
    several = copy.deepcopy(results)
    several["students"][0] |= {"ratio": "teacher", "divergence": "js", "seed": 5}
    assert short_name(several["students"][0], several) == "teacher, ratio net teacher, js, seed 5"


def student(init: str, seed: int, *frechet: float) -> dict[str, Any]:
    curve = [{"images": 64 * i, "frechet": value, "kid": value / 10} for i, value in enumerate(frechet)]
    return {
        "init": init, "ratio": "random", "divergence": "reverse_kl", "seed": seed, "name": f"{init}{seed}",
        "status": "done", "seconds": 1.0, "curve": curve,
    }  # fmt: skip


def test_the_summary_pairs_students_within_a_seed() -> None:
    students = [
        student("random", 0, 9, 8.0), student("teacher", 0, 9, 2.0), student("prior_only", 0, 9, 4.0),
        student("random", 1, 9, 4.0), student("teacher", 1, 9, 5.0), student("prior_only", 1, 9, 2.0, 1.0),
    ]  # fmt: skip
    rows = {row["init"]: row for row in summarise(students)}
    assert rows["random"]["share"] == [0.0, None] and rows["teacher"]["share"] == [1.0, None]
    assert rows["prior_only"]["share"] == [pytest.approx(0.5), None]
    assert rows["prior_only"]["geometric"] == pytest.approx([4.0, np.sqrt(2.0)])
    assert rows["prior_only"]["frechet"] == [4.0, 1.0] and rows["prior_only"]["seeds"] == [0, 1]


def test_an_unfinished_student_is_in_no_summary() -> None:
    students = [student("random", 0, 9, 8.0), student("teacher", 0, 9, 2.0) | {"status": "running"}]
    (row,) = summarise(students)
    assert row["init"] == "random" and row["share"] == [None]


def test_the_table_for_the_terminal(results: Any) -> None:
    lines = result_lines(results)
    assert lines[0].split()[:3] == ["initialisation", "ratio", "net"]
    assert {line.split()[0] for line in lines[1:4]} == set(INITS)
    distances = [float(line.split()[4]) for line in lines[1:4]]
    assert distances == sorted(distances)
    assert lines[4].startswith("for scale: training images ") and "Heun steps" in lines[4]
    several = summarise([student("random", seed, 9, 2.0 + seed) for seed in range(3)])
    (row,) = summary_rows({"summary": several})
    assert row[3:5] == ["3", "3.000 (2.000 to 4.000)"] and row[7] == "-"


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_of_several_seeds_have_bands(results: Any, seeds: int) -> None:
    made = copy.deepcopy(results)
    made["students"] = [student(init, seed, 9, 4 + seed) for init in INITS for seed in range(seeds)]
    bands = [trace for trace in study_figures.curves(made, "frechet").data if trace.fill == "toself"]
    assert len(bands) == (3 if seeds > 1 else 0)
    lines = [trace for trace in study_figures.curves(made, "frechet").data if trace.name == "random"]
    assert lines[0].y[-1] == pytest.approx(np.prod(4.0 + np.arange(seeds)) ** (1 / seeds))


# --- results as files ---------------------------------------------------------------------------------------


def test_results_are_strict_json_and_net_cdf(tiny_study: Path, results: Any) -> None:
    import xarray as xr

    assert results["format"] == "featlens.study" and results["version"] == 1
    with xr.open_dataset(tiny_study / "results.nc", engine="h5netcdf") as data:
        assert data.sizes == {"student": 3, "images": len(results["students"][0]["curve"])}
        row = data.sel(student="student-random-random-reverse_kl-s0")
        expected = [point["frechet"] for point in results["students"][2]["curve"]]
        np.testing.assert_allclose(row["frechet"].values, expected)
        assert str(row["init"].values) == "random"


def test_what_is_not_a_number_is_null_in_the_results(study: Study, tmp_path: Path, parse_page: Any) -> None:
    found = collect(study.folder, study.config)
    cka = found["features"]["student-random-random-reverse_kl-s0"]["cka"]
    for name in ("value", "null_high", "p_family"):
        cka[name][0][0][0] = float("nan")
    cka["same_site"][cka["sites"][0]][0] = float("nan")
    found["summary"][0]["geometric"] = [float("nan")]
    write_results(study.folder, found)
    read = strict((study.folder / "results.json").read_text())
    assert read["features"]["student-random-random-reverse_kl-s0"]["cka"]["value"][0][0][0] is None
    for kind in (found, read):
        page = parse_page(write_report(study.folder, study.config, kind))
        assert page.figures("featlensExplorer")[0]["panels"]["random|0.5"]["z"][0][0] is None
        assert result_lines(kind)


def test_a_comparison_of_an_earlier_layout_is_named_and_made_again(study: Study, parse_page: Any) -> None:
    import h5py

    name = "student-random-random-reverse_kl-s0"
    path = study.folder / "features" / f"{name}-vs-teacher.nc"
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 1
    found = collect(study.folder, study.config)
    assert "cka" not in found["features"][name] and found["features"][name]["probe"]
    assert list(found["failed"]) == [f"analyse {name}"]
    page = parse_page(write_report(study.folder, study.config, found))
    assert "compare again (run the study again)" in page.text
    record = path.parent / f"{name}-analysis.json"
    record.write_text(
        json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "comparison"})
    )
    study.run(jobs=0)
    again = collect(study.folder, study.config)
    assert "cka" in again["features"][name] and not again["failed"]


# --- half-finished studies ----------------------------------------------------------------------------------


def report(study: Study, parse_page: Any) -> Any:
    results = collect(study.folder, study.config)
    write_results(study.folder, results)
    strict((study.folder / "results.json").read_text())
    assert result_lines(results)
    return parse_page(write_report(study.folder, study.config, results))


def test_a_missing_student_is_named(study: Study, parse_page: Any) -> None:
    shutil.rmtree(study.folder / "student-single_sigma-random-reverse_kl-s0")
    for path in study.folder.glob("features/student-single_sigma*"):
        path.unlink()
    page = report(study, parse_page)
    assert "Not finished, so not shown: student-single_sigma-random-reverse_kl-s0." in page.text
    assert "start: single_sigma" not in page.attributes("alt")
    assert sections(page) == SECTIONS


def test_a_running_student_is_named(study: Study, parse_page: Any) -> None:
    path = study.folder / "student-random-random-reverse_kl-s0" / "run.json"
    record = json.loads(path.read_text()) | {"status": "running", "info": {}}
    path.write_text(json.dumps(record))
    page = report(study, parse_page)
    assert "Not finished, so not shown: student-random-random-reverse_kl-s0." in page.text
    assert "running" in page.words


def test_without_any_student_the_page_still_comes(study: Study, parse_page: Any) -> None:
    for path in [*study.folder.glob("student-*"), study.folder / "features", study.folder / "teacher"]:
        shutil.rmtree(path)
    page = report(study, parse_page)
    assert "Not finished, so not shown: " in page.text
    assert sections(page) == [SECTIONS[0], SECTIONS[2], SECTIONS[3], SECTIONS[6]]
    assert page.attributes("alt") == ["held-out images"]


def test_a_folder_with_settings_alone_has_a_page(tiny_study: Path, tmp_path: Path, parse_page: Any) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(tiny_study / "study.toml", tmp_path / "new" / "study.toml")
    page = report(Study.open(tmp_path / "new"), parse_page)
    assert all(f"student-{init}-random-reverse_kl-s0" in page.text for init in INITS)


def test_a_failed_job_is_told(study: Study, parse_page: Any) -> None:
    results = collect(study.folder, study.config, {"teacher": "it <b>diverged</b>"})
    page = parse_page(write_report(study.folder, study.config, results))
    assert "teacher: it <b>diverged</b>" in page.words


# --- pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "side"), [(1, 1), (3, 1), (4, 2), (8, 2), (9, 3)])
def test_a_grid_is_square_and_in_reading_order(count: int, side: int) -> None:
    images = np.linspace(-1, 1, count)[:, None, None, None] * np.ones((1, 1, 2, 2))
    canvas = grid(images)
    assert canvas.shape == (3 * side - 1, 3 * side - 1)
    assert np.allclose(canvas[::3, ::3].ravel(), (images[: side**2, 0, 0, 0] + 1) * 127.5)


def test_a_grid_of_colour_images() -> None:
    canvas = grid(np.stack([np.full((3, 2, 2), -1.0), *[np.full((3, 2, 2), 1.0)] * 3]))
    assert canvas.shape == (5, 5, 3) and canvas[0, 0].tolist() == [0, 0, 0]
    assert canvas[4, 4].tolist() == [255, 255, 255]


def test_students_that_were_still_improving_are_named() -> None:
    def student(init: str, *distances: float) -> dict[str, Any]:
        curve = [{"images": index, "frechet": value, "kid": 0.0} for index, value in enumerate(distances)]
        return {"init": init, "status": "done", "curve": curve}

    students = [
        student("teacher", 5.0, 1.0, 0.95),
        student("random", 9.0, 5.0, 4.0),
        student("random", 9.0, 5.0, 3.0),
    ]
    said = " ".join(what_came_out(StudyConfig(), {"students": students, "summary": []}))
    assert "all before): random." in said
    level = [student("teacher", 5.0, 1.0, 0.95)]
    assert "Still improving" not in " ".join(what_came_out(StudyConfig(), {"students": level, "summary": []}))
