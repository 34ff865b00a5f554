"""Plotly figures of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens_trainers.settings import STUDY_INITIALISATIONS

__all__ = ["cka_by_sigma", "curves", "final_distances", "probe_by_sigma"]

# Okabe and Ito's palette, readable in light and dark and with colour blindness.
PALETTE = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#8a8f96")
COLOURS = dict(zip(STUDY_INITIALISATIONS, PALETTE, strict=True))
OTHER_COLOURS = ("#56B4E9", "#117733", "#882255", "#AA4499", "#999933", "#332288", "#44AA99", "#661100")
DASHES = {"random": "solid", "teacher": "dot"}
SYMBOLS = {"reverse_kl": "circle", "js": "diamond"}

FINAL_CAPTION = (
    "Frechet distance of final images to held-out ones (classifier features, log scale, smaller is "
    "better). One mark a student; filled: ratio network from random weights, hollow: from the teacher's "
    "encoder."
)
TABLE_CAPTION = (
    "Mean over seeds, and the range where there are several. Share of advantage: how much of the log "
    "distance between random and teacher start is recovered (0 like random, 1 like teacher)."
)
CURVE_CAPTION = (
    "Frechet distance to held-out images against images seen (log scale). Line: geometric mean over "
    "seeds; band: their range. Dotted: ratio network from the teacher. Horizontal lines: training images, "
    "and the teacher with Heun steps."
)
CKA_CAPTION = (
    "Mean over sites of the CKA between a student's site and the teacher's site of the same name, by "
    "noise level. Band: mean of the 95 % confidence intervals over images, with several seeds from the "
    "lowest end to the highest. Light dashes: a network with random weights. Grey dashes: the largest 95 % "
    "null level of any such cell."
)
PROBE_CAPTION = (
    "Test accuracy at the site that was best on validation rows, by noise level. Dashed: the highest "
    "95 % chance level. The 95 % interval of each accuracy is shown on hover in the map below."
)


def colour_of(init: str, results: Mapping[str, Any]) -> str:
    """Colour of an initialisation, the same in all figures of a study."""
    if init in COLOURS:
        return COLOURS[init]
    others = list(dict.fromkeys(s["init"] for s in results["students"] if s["init"] not in COLOURS))
    return OTHER_COLOURS[others.index(init) % len(OTHER_COLOURS)]


def _groups(results: Mapping[str, Any]) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Finished students by (init, ratio, divergence)."""
    out: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for student in results["students"]:
        if student["status"] == "done" and student["curve"]:
            out.setdefault((student["init"], student["ratio"], student["divergence"]), []).append(student)
    return out


def _label(key: tuple[str, str, str], results: Mapping[str, Any]) -> str:
    init, ratio, divergence = key
    parts = [init]
    if len({student["ratio"] for student in results["students"]}) > 1:
        parts.append(f"ratio net {ratio}")
    if len({student["divergence"] for student in results["students"]}) > 1:
        parts.append(divergence)
    return ", ".join(parts)


def _reference_lines(chart: Any, results: Mapping[str, Any], axis: str) -> None:
    """Lines at the distance of training images and of the teacher's Heun samples, on a logarithmic axis."""
    quality = results["runs"].get("teacher", {}).get("quality", {})
    across = "y" if axis == "x" else "x"
    labels = (("training_images", "training images"), ("heun", "teacher, Heun steps"))
    for index, (key, label) in enumerate(labels):
        value = quality.get(key, {}).get("frechet")
        if value is None or value <= 0:
            continue
        chart.add_shape(
            type="line",
            line={"dash": "dash", "width": 1, "color": "#8a8f96"},
            **{
                f"{axis}0": value,
                f"{axis}1": value,
                f"{across}0": 0,
                f"{across}1": 1,
                f"{across}ref": "paper",
            },
        )
        # On a logarithmic axis plotly takes the logarithm for annotations but the value itself for shapes.
        place: dict[str, Any] = {axis: math.log10(value), across: 1, f"{across}ref": "paper"}
        if axis == "x":
            place |= {"yanchor": "bottom", "xanchor": "left", "yshift": 15 * index}
        else:
            place |= {"xanchor": "right", "yanchor": "bottom"}
        chart.add_annotation(text=label, showarrow=False, font={"size": 11}, **place)


def _bands(
    results: Mapping[str, Any],
    points: Mapping[tuple[str, str, str], tuple[Any, Any]],
    log: bool,
    ends: Mapping[tuple[str, str, str], tuple[Any, Any]] | None = None,
) -> list[Any]:
    """Line and band of (x, values of shape (seeds, x)) for each group.

    The band is the range over seeds, or goes from the lowest to the highest of ``ends``, both (seeds, x).
    """
    import plotly.graph_objects as go

    traces = []
    for key, (x, values) in points.items():
        colour, name = colour_of(key[0], results), _label(key, results)
        middle = np.exp(np.log(np.maximum(values, 1e-9)).mean(axis=0)) if log else values.mean(axis=0)
        low, high = (ends or {}).get(key, (values, values))
        around = np.concatenate([high.max(axis=0), low.min(axis=0)[::-1]])
        if (len(values) > 1 or ends) and np.isfinite(around).all():
            traces.append(
                go.Scatter(
                    x=[*x, *x[::-1]],
                    y=around,
                    mode="lines",
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.16,
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                    legendgroup=name,
                )
            )
        traces.append(
            go.Scatter(
                x=x,
                y=middle,
                name=name,
                legendgroup=name,
                mode="lines+markers",
                line={"color": colour, "dash": DASHES[key[1]], "width": 2.2},
                marker={"symbol": SYMBOLS.get(key[2], "square"), "size": 7},
            )
        )
    return traces


LEGEND = {"orientation": "h", "y": -0.3, "yanchor": "top", "x": 0}


def curves(results: Mapping[str, Any], measure: str) -> Any:
    """``frechet`` or ``kid`` against images seen, a line for each group."""
    import plotly.graph_objects as go

    points = {}
    for key, students in _groups(results).items():
        common = set.intersection(*({point["images"] for point in student["curve"]} for student in students))
        x = sorted(common)
        values = [
            [{p["images"]: p[measure] for p in student["curve"]}[images] for images in x]
            for student in students
        ]
        points[key] = (x, np.array(values))
    chart = go.Figure(_bands(results, points, log=measure == "frechet"))
    if measure == "frechet":
        _reference_lines(chart, results, "y")
    axis: dict[str, Any] = {"title": {"text": "Frechet distance" if measure == "frechet" else "KID"}}
    if measure == "frechet":
        axis |= {"type": "log", "dtick": 1}
    chart.update_layout(
        xaxis={"title": {"text": "images seen by the student"}, "rangemode": "tozero"},
        yaxis=axis,
        legend=LEGEND,
    )
    return chart


def final_distances(results: Mapping[str, Any]) -> Any:
    """One mark a student: final Frechet distance by initialisation."""
    import plotly.graph_objects as go

    traces, named = [], set()
    for (init, ratio, divergence), students in _groups(results).items():
        several = _label(("", ratio, divergence), results).strip(", ") or "students"
        traces.append(
            go.Scatter(
                x=[student["curve"][-1]["frechet"] for student in students],
                y=[init] * len(students),
                mode="markers",
                name=several,
                legendgroup=several,
                showlegend=several not in named and several != "students",
                text=[f"seed {student['seed']}" for student in students],
                hovertemplate="%{y}, %{text}<br>Frechet %{x:.4f}<extra></extra>",
                marker={
                    "symbol": SYMBOLS.get(divergence, "square") + ("" if ratio == "random" else "-open"),
                    "size": 13,
                    "color": colour_of(init, results),
                    "line": {"width": 2, "color": colour_of(init, results)},
                },
            )
        )
        named.add(several)
    chart = go.Figure(traces)
    _reference_lines(chart, results, "x")
    there = dict.fromkeys(key[0] for key in _groups(results))
    usual = [init for init in STUDY_INITIALISATIONS if init in there]
    present = [*usual, *(init for init in there if init not in usual)][::-1]
    chart.update_layout(
        xaxis={"type": "log", "title": {"text": "Frechet distance"}},
        yaxis={"categoryorder": "array", "categoryarray": present, "automargin": True},
        legend=LEGEND,
        margin={"t": 56},
    )
    return chart


def cka_by_sigma(results: Mapping[str, Any]) -> Any:
    """Mean same-site CKA with the teacher against sigma."""
    import plotly.graph_objects as go

    points, ends, nulls = {}, {}, []
    for key, students in _groups(results).items():
        entries = [results["features"].get(student["name"], {}).get("cka") for student in students]
        found = [entry for entry in entries if entry]
        if found:
            points[key] = (found[0]["sigmas"], _over_sites(found, "same_site"))
            ends[key] = (_over_sites(found, "same_site_low"), _over_sites(found, "same_site_high"))
            nulls += [
                np.nanmax(np.diagonal(np.array(entry["null_high"], dtype=float), axis1=1, axis2=2))
                for entry in found
            ]
    traces = _bands(results, points, log=False, ends=ends)
    untrained = results["features"].get("untrained", {}).get("cka")
    if untrained:
        values = _over_sites([untrained], "same_site")[0]
        traces.append(_reference_trace(untrained["sigmas"], values, "untrained network"))
    chart = go.Figure(traces)
    if nulls and np.isfinite(max(nulls)):
        chart.add_hline(y=float(max(nulls)), line={"dash": "dash", "width": 1, "color": "#8a8f96"})
    chart.update_layout(
        xaxis={"type": "log", "title": {"text": "sigma"}},
        yaxis={"title": {"text": "mean CKA, same site"}, "range": [-0.02, 1.02]},
        legend=LEGEND,
    )
    return chart


def _over_sites(found: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """Mean over sites, of shape (students, sigma).

    The mean of the intervals' ends is a conservative interval of the mean: it is right if all sites err
    together, and too wide if they do not.
    """
    rows = [np.array(list(entry[name].values()), dtype=np.float64) for entry in found]
    known = [np.isfinite(row) for row in rows]
    sums = [np.where(there, row, 0.0).sum(axis=0) for there, row in zip(known, rows, strict=True)]
    counts = [there.sum(axis=0) for there in known]
    return np.array(
        [np.where(n > 0, total / np.maximum(n, 1), np.nan) for n, total in zip(counts, sums, strict=True)]
    )


def probe_by_sigma(results: Mapping[str, Any]) -> Any:
    """Accuracy at the site chosen on validation rows against sigma, teacher and students."""
    import plotly.graph_objects as go

    points: dict[tuple[str, str, str], tuple[Any, Any]] = {}
    for key, students in _groups(results).items():
        found = [results["features"].get(student["name"], {}).get("probe") for student in students]
        rows = [_best_by_sigma(probe["cells"]) for probe in found if probe]
        if rows:
            points[key] = (list(rows[0]), np.array([list(row.values()) for row in rows]))
    traces = _bands(results, points, log=False)
    teacher = results["features"].get("teacher", {}).get("probe")
    if teacher:
        best = _best_by_sigma(teacher["cells"])
        traces.append(_reference_trace(list(best), list(best.values()), "the teacher itself"))
    probes = [entry.get("probe") or {} for entry in results["features"].values()]
    chances = [c["chance_high"] for p in probes for c in p.get("cells", []) if c["chance_high"] is not None]
    chart = go.Figure(traces)
    if chances:
        chart.add_hline(y=max(chances), line={"dash": "dash", "width": 1, "color": "#8a8f96"})
    chart.update_layout(
        xaxis={"type": "log", "title": {"text": "sigma"}},
        yaxis={"title": {"text": "probe accuracy"}, "range": [0, 1.02]},
        legend=LEGEND,
    )
    return chart


def _reference_trace(x: Any, y: Any, name: str) -> Any:
    import plotly.graph_objects as go

    line = {"dash": "dash", "width": 2, "color": "#56B4E9"}
    return go.Scatter(x=list(x), y=list(y), name=name, mode="lines+markers", line=line)


def _best_by_sigma(cells: list[Mapping[str, Any]]) -> dict[float, float]:
    out: dict[float, float] = {}
    for sigma in dict.fromkeys(cell["sigma"] for cell in cells):
        here = [cell for cell in cells if cell["sigma"] == sigma]
        out[sigma] = max(
            here, key=lambda cell: cell["validation"] if cell["validation"] is not None else -1.0
        )["accuracy"]
    return out
