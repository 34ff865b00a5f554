"""The report of a study: one offline page, and the short table that the command prints."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from featlens.files import make_folder, write_bytes
from featlens.report import Page, explorer, figure, image, note, table
from featlens.report.page import png
from featlens_trainers import study_figures as figures
from featlens_trainers.settings import StudyConfig
from featlens_trainers.study_text import kept_and_removed, question, short_name, what_came_out

__all__ = ["grid", "result_lines", "write_report"]

SHOWN = 36
"""Images a grid of the report shows."""


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Mean, and the range over seeds where there are several."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return "-"
    mean = _number(sum(known) / len(known), digits)
    return (
        mean
        if len(known) == 1
        else f"{mean} ({_number(min(known), digits)} to {_number(max(known), digits)})"
    )


def summary_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the result table: best final distance first within each ratio-network start and divergence."""
    rows = sorted(
        results["summary"], key=lambda row: (row["ratio"], row["divergence"], float(np.mean(row["frechet"])))
    )
    return [
        [
            row["init"],
            row["ratio"],
            row["divergence"],
            str(len(row["seeds"])),
            _spread(row["frechet"]),
            _spread(row["kid"], 4),
            _spread(row["geometric"]),
            _spread(row["share"], 2),
        ]
        for row in rows
    ]


HEADERS = [
    "initialisation",
    "ratio net",
    "divergence",
    "seeds",
    "Frechet",
    "KID",
    "Frechet, curve",
    "share of advantage",
]


def result_lines(results: Mapping[str, Any]) -> list[str]:
    """The table that the command prints."""
    rows = [HEADERS, *summary_rows(results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADERS))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    teacher = results["runs"].get("teacher", {}).get("quality")
    if teacher:
        lines.append(
            f"for scale: training images {_number(teacher['training_images']['frechet'])}, "
            f"teacher with Heun steps {_number(teacher['heun']['frechet'])}, "
            f"teacher's one-step map {_number(teacher['one_step']['frechet'])}"
        )
    lines.append(
        "Frechet and KID: final images against held-out ones, mean (range over seeds); curve: geometric "
        "mean over the run; share: 0 like random, 1 like teacher, on the log distance"
    )
    return lines


def write_report(
    folder: Path, config: StudyConfig, results: Mapping[str, Any], out: os.PathLike[str] | str | None = None
) -> Path:
    """Write ``report.html`` and the sample grids, or only the page to ``out``; returns the page's path."""
    page = Page("Why does starting from the teacher help?", question(config))
    _outcome(page, config, results)
    _samples(page, folder, config, results)
    _features(page, config, results)
    _probes(page, results)
    _record(page, folder, config, results)
    if out is not None:
        return page.write(out)
    write_samples(folder, config, results)
    return page.write(folder / "report.html")


def _outcome(page: Page, config: StudyConfig, results: Mapping[str, Any]) -> None:
    missing = [student["name"] for student in results["students"] if student["status"] != "done"]
    parts = [note(sentence, "plain") for sentence in what_came_out(config, results)]
    if missing:
        parts.append(
            note(
                f"Not finished, so not shown: {', '.join(missing)}. Run the study again to finish.", "warning"
            )
        )
    for name, message in results["failed"].items():
        parts.append(note(f"{name}: {message}", "warning"))
    if results["summary"]:
        parts += [
            figure(figures.final_distances(results), figures.FINAL_CAPTION, height=420),
            table(HEADERS, summary_rows(results), figures.TABLE_CAPTION),
        ]
    page.section("What came out", *parts)
    if results["summary"]:
        page.section(
            "Distance against images seen",
            figure(figures.curves(results, "frechet"), figures.CURVE_CAPTION, height=480),
            figure(
                figures.curves(results, "kid"),
                "KID to held-out images against images seen; zero or below means no difference was found.",
                height=400,
            ),
        )
    rows = [[init, *kept_and_removed(init, config)] for init in config.inits]
    page.section(
        "What each initialisation keeps", table(["initialisation", "keeps of the teacher", "removes"], rows)
    )


def _samples(page: Page, folder: Path, config: StudyConfig, results: Mapping[str, Any]) -> None:
    real = _picture(_held_out(config), "held-out images", "real, never trained on")
    pictures = [real, *_model_pictures(folder, config, results)]
    found = [picture for picture in pictures if picture is not None]
    page.section(
        "Samples",
        note(
            "All students of all initialisations draw from the same latents: the same place in two "
            "grids is the same noise."
        ),
        Markup('<div class="gallery">{}</div>').format(Markup("").join(found)),
    )


def grid(images: Any) -> Any:
    """(N, C, H, W) in [-1, 1] -> one picture with a pixel between images."""
    side = max(math.isqrt(len(images)), 1)
    count, channels, height, width = images.shape
    canvas = np.full((side * (height + 1) - 1, side * (width + 1) - 1, channels), 110.0)
    for index in range(min(count, side * side)):
        top, left = (index // side) * (height + 1), (index % side) * (width + 1)
        canvas[top : top + height, left : left + width] = (images[index].transpose(1, 2, 0) + 1) * 127.5
    return canvas[:, :, 0] if channels == 1 else canvas


def _picture(images: Any, caption: str, detail: str) -> Markup:
    return image(grid(np.asarray(images)[:SHOWN]), caption, detail, scale=4)


def write_samples(folder: Path, config: StudyConfig, results: Mapping[str, Any]) -> None:
    """Write ``samples/held-out.png`` and ``samples/<run>.png`` for every run that kept images."""
    write_bytes(make_folder(folder / "samples") / "held-out.png", png(grid(_held_out(config))))
    for name in ["teacher", *(student["name"] for student in results["students"])]:
        with contextlib.suppress(OSError, ValueError, EOFError):
            images = np.load(folder / name / "samples.npy", allow_pickle=False)
            write_bytes(make_folder(folder / "samples") / f"{name}.png", png(grid(images)))


def _held_out(config: StudyConfig) -> Any:
    from featlens import SampleSet

    return SampleSet.load(config.data, split="held-out", seed=config.seed).images[: config.evaluation.grid**2]


def _model_pictures(folder: Path, config: StudyConfig, results: Mapping[str, Any]) -> list[Markup | None]:
    out: list[Markup | None] = []
    teacher = results["runs"].get("teacher", {}).get("quality")
    if teacher:
        detail = f"{config.evaluation.heun_steps} Heun steps, Frechet {_number(teacher['heun']['frechet'])}"
        out.append(_stored(folder, "teacher", "the teacher itself", detail))
    for student in results["students"]:
        if student["status"] == "done" and student["curve"]:
            detail = f"one step, Frechet {_number(student['curve'][-1]['frechet'])}"
            out.append(_stored(folder, student["name"], f"start: {short_name(student, results)}", detail))
    return out


def _stored(folder: Path, name: str, caption: str, detail: str) -> Markup | None:
    try:
        images = np.load(folder / name / "samples.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return _picture(images, caption, detail) if images.ndim == 4 else None


def _features(page: Page, config: StudyConfig, results: Mapping[str, Any]) -> None:
    panels = {}
    names = {student["name"]: short_name(student, results) for student in results["students"]}
    for name, short in (names | {"untrained": "untrained network"}).items():
        cka = results["features"].get(name, {}).get("cka")
        if cka:
            for index, sigma in enumerate(cka["sigmas"]):
                panels[f"{short}|{sigma:g}"] = _cka_panel(cka, index)
    if not panels:
        return
    n = next(entry["cka"]["n"] for entry in results["features"].values() if "cka" in entry)
    page.section(
        "Features: students against the teacher",
        note(
            f"Debiased linear CKA on {n} held-out images under the same noise, after distillation. It says "
            "how alike the features are, not what causes the outcome: a student may become like the "
            "teacher because it learnt the task, and even an untrained network is like it as far as the "
            "input alone makes it so."
        ),
        figure(figures.cka_by_sigma(results), figures.CKA_CAPTION, height=420),
        explorer(
            panels,
            ["student", "sigma"],
            "CKA of every teacher site with every student site. Grey: not above the null of "
            f"{config.features.permutations} permutations of the images (family-wise p above 0.05). Hover "
            "for values with 95 % confidence intervals over images and null levels.",
            ("student site", "teacher site"),
            "CKA",
        ),
    )


def _cka_panel(cka: Mapping[str, Any], level: int) -> dict[str, Any]:
    """Heat map of one student at one noise level; cells that are not above their null are left grey."""
    names = ("value", "ci_low", "ci_high", "null_high", "p_family")
    value, low, high, null, p = (np.array(cka[name][level], dtype=np.float64) for name in names)

    def text(i: int, j: int) -> str:
        return (
            f"CKA {_number(value[i, j])} (95 % interval {_number(low[i, j])} to {_number(high[i, j])})<br>"
            f"null: 95 % below {_number(null[i, j])}<br>family-wise p {_number(p[i, j])}"
        )

    sites = cka["sites"]
    places = range(len(sites))
    return {
        "x": sites,
        "y": sites,
        "z": np.where(np.nan_to_num(p, nan=0.0) > 0.05, np.nan, value),
        "text": [[text(i, j) for j in places] for i in places],
    }


def _probes(page: Page, results: Mapping[str, Any]) -> None:
    panels: dict[str, dict[str, Any]] = {}
    names = {"teacher": "the teacher itself", "untrained": "untrained network"} | {
        s["name"]: short_name(s, results) for s in results["students"]
    }
    facts: dict[str, Any] = {}
    for name, entry in results["features"].items():
        probe = entry.get("probe") or {}
        if not probe.get("cells"):
            continue
        facts = probe
        panels[names[name]] = _probe_panel(probe["cells"])
    if not panels:
        return
    page.section(
        "Linear probes: class by site and noise level",
        note(
            "Share of held-out images that a linear probe on the site's features names right: "
            f"{facts['splits']} random splits, {facts['n_fit']} images to fit and to choose the penalty, "
            f"{facts['n_test']} to test. Chance is measured by permuted labels and shown on hover."
        ),
        figure(figures.probe_by_sigma(results), figures.PROBE_CAPTION, height=420),
        explorer(
            panels,
            ["network"],
            "Test accuracy of the probe at every site and noise level.",
            ("sigma", "site"),
            "accuracy",
        ),
    )


def _probe_panel(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sites = list(dict.fromkeys(cell["site"] for cell in cells))
    sigmas = list(dict.fromkeys(cell["sigma"] for cell in cells))
    by = {(cell["site"], cell["sigma"]): cell for cell in cells}

    def text(cell: Mapping[str, Any]) -> str:
        return (
            f"accuracy {cell['accuracy']:.3f} (95 % interval {cell['ci_low']:.3f} to "
            f"{cell['ci_high']:.3f})<br>"
            f"chance {_number(cell['chance'])}, 95 % of it below {_number(cell['chance_high'])}"
        )

    return {
        "x": [f"{sigma:g}" for sigma in sigmas],
        "y": sites,
        "z": [[by[site, sigma]["accuracy"] for sigma in sigmas] for site in sites],
        "text": [[text(by[site, sigma]) for sigma in sigmas] for site in sites],
    }


def _record(page: Page, folder: Path, config: StudyConfig, results: Mapping[str, Any]) -> None:
    from featlens_trainers.study import to_toml

    runs = [
        [name, run["status"], f"{run['seconds']:.0f}", run.get("weights_digest", run.get("digest", ""))]
        for name, run in results["runs"].items()
    ]
    runs += [
        [student["name"], student["status"], f"{student['seconds']:.0f}", student.get("weights_digest", "")]
        for student in results["students"]
    ]
    sessions = results["sessions"]
    spent = sum(session["seconds"] for session in sessions)
    said = "; ".join(
        f"{s['seconds']:.0f} s with {s['jobs']} jobs on {s['device']} ({s['cores']} cores)" for s in sessions
    )
    accuracy = results["runs"].get("classifier", {}).get("held_out_accuracy")
    page.section(
        "What was run",
        note(f"Wall time {spent:.0f} s in {len(sessions)} session(s): {said}.", "plain")
        if sessions
        else note("", "plain"),
        note(f"The quality classifier names {100 * accuracy:.1f} % of held-out images right.", "plain")
        if accuracy
        else note("", "plain"),
        table(["package", "version"], list(results["versions"].items())),
        table(["run", "status", "seconds", "weights digest"], runs),
        note(
            "Configuration (study.toml); the same command with the same settings continues or "
            "reproduces this study:",
            "plain",
        ),
        Markup("<pre>{}</pre>").format(
            f"featlens study {folder / 'study.toml'} -o NEW_FOLDER\n\n{to_toml(config)}"
        ),
    )
