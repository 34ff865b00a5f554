"""What a study found, as plain data: one record a student, one summary row an initialisation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featlens.files import write_netcdf, write_text
from featlens_trainers.analysis import analysis_paths
from featlens_trainers.config import to_mapping
from featlens_trainers.runs import read_run, read_stats, versions
from featlens_trainers.settings import StudyConfig

if TYPE_CHECKING:
    from featlens import Comparison

__all__ = ["as_json_text", "collect", "summarise", "write_results"]


def collect(study: Path, config: StudyConfig, failed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything measured so far; students that are not done are listed with their status."""
    from featlens_trainers.study import Study
    from featlens_trainers.tasks import CONTROLS

    students = [_student(study, spec) for spec in Study(study, config).students()]
    features, unreadable = _features(study, config)
    controls = {name: read_run(study / name) for name in ("classifier", "teacher", *CONTROLS)}
    records = [record for record in controls.values() if record]
    records += [
        record for record in map(read_run, (study / student["name"] for student in students)) if record
    ]
    return {
        "format": "featlens.study",
        "version": 1,
        "config": to_mapping(config),
        "versions": _versions(records),
        "runs": {
            name: {"status": r["status"], "seconds": r["seconds"], **r["info"]}
            for name, r in controls.items()
            if r
        },
        "students": students,
        "summary": summarise(students),
        "features": features,
        "failed": unreadable | dict(failed or {}),
        "sessions": _json(study / "sessions.json", []),
    }


def _versions(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Versions that the runs were made with; several where they differ."""
    out: dict[str, set[str]] = {}
    for record in records:
        for package, version in record.get("versions", {}).items():
            out.setdefault(package, set()).add(str(version))
    return {package: " and ".join(sorted(found)) for package, found in out.items()} or versions()


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return default


def _student(study: Path, spec: Any) -> dict[str, Any]:
    folder = study / spec.name
    run = read_run(folder) or {"status": "missing", "seconds": 0.0, "info": {}}
    curve = [
        {"images": line["images"], "frechet": line["frechet"], "kid": line["kid"]}
        for line in read_stats(folder)
        if "frechet" in line
    ]
    return {
        "name": spec.name,
        "init": spec.init,
        "ratio": spec.ratio,
        "divergence": spec.divergence,
        "seed": spec.seed,
        "status": run["status"],
        "seconds": run["seconds"],
        "curve": curve,
        **run["info"],
    }


def summarise(students: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (init, ratio, divergence): final distances over seeds, share of advantage recovered.

    The share is ``(ln F_random - ln F_init) / (ln F_random - ln F_teacher)`` within a seed, with F the final
    Frechet distance: 0 like random, 1 like the teacher. It is left out where the teacher's start is not
    better than random.
    """
    done = [student for student in students if student["status"] == "done" and student["curve"]]
    final = {_key(student): student["curve"][-1] for student in done}
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for student in done:
        init, ratio, divergence, seed = _key(student)
        row = rows.setdefault(
            (init, ratio, divergence), {"frechet": [], "kid": [], "geometric": [], "share": [], "seeds": []}
        )
        row["seeds"].append(seed)
        row["frechet"].append(student["curve"][-1]["frechet"])
        row["kid"].append(student["curve"][-1]["kid"])
        row["geometric"].append(
            _geometric_mean([point["frechet"] for point in student["curve"] if point["images"] > 0])
        )
        ends = [final.get((name, ratio, divergence, seed)) for name in ("random", "teacher")]
        row["share"].append(_share(ends[0], student["curve"][-1], ends[1]))
    return [
        {"init": init, "ratio": ratio, "divergence": divergence, **row}
        for (init, ratio, divergence), row in rows.items()
    ]


def _key(student: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return student["init"], student["ratio"], student["divergence"], student["seed"]


def _geometric_mean(values: Sequence[float]) -> float:
    return (
        math.exp(sum(math.log(max(value, 1e-12)) for value in values) / len(values)) if values else math.nan
    )


def _share(
    random: Mapping[str, float] | None, own: Mapping[str, float], teacher: Mapping[str, float] | None
) -> float | None:
    if (
        random is None
        or teacher is None
        or not 0 < teacher["frechet"] < random["frechet"]
        or own["frechet"] <= 0
    ):
        return None
    top = math.log(random["frechet"] / own["frechet"])
    return top / math.log(random["frechet"] / teacher["frechet"])


def _features(study: Path, config: StudyConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """CKA to the teacher and probe accuracies of every network that was analysed; what cannot be read."""
    from featlens import Comparison
    from featlens.errors import FeatlensError
    from featlens_trainers.study import Study

    out: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for name in ["teacher", "untrained", *(spec.name for spec in Study(study, config).students())]:
        paths = analysis_paths(study, name)
        if not paths["record"].exists():
            continue
        entry: dict[str, Any] = {"probe": _json(paths["probe"], {})}
        if paths["comparison"].exists() and name != "teacher":
            try:
                entry["cka"] = _cka(Comparison.load(paths["comparison"]))
            except FeatlensError as error:
                unreadable[f"analyse {name}"] = f"{error} (run the study again)"
        out[name] = entry
    return out, unreadable


def _cka(comparison: Comparison) -> dict[str, Any]:
    """Values, intervals and null levels of all pairs of sites, and those of the same site by its name.

    Arrays are lists over (sigma, teacher's site, student's site), those by name over sigma.
    """
    panel = comparison.panel()
    place = {site: j for j, site in enumerate(panel.sites_b)}
    same = [(site, i, place[site]) for i, site in enumerate(panel.sites_a) if site in place]

    def along(name: str) -> dict[str, Any]:
        return {site: np.round(panel.arrays[name][:, i, j], 5).tolist() for site, i, j in same}

    return {
        "sigmas": [level[0] for level in comparison.levels],
        "sites": list(panel.sites_a),
        "same_site": along("value"),
        "same_site_low": along("ci_low"),
        "same_site_high": along("ci_high"),
        **{
            name: np.round(panel.arrays[name], 4).tolist()
            for name in ("value", "ci_low", "ci_high", "null_high", "p_family")
        },
        "n": comparison.n,
    }


def _without_nan(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_json_text(results: Mapping[str, Any]) -> str:
    """Results as one line of strict JSON."""
    return json.dumps(_without_nan(results)) + "\n"


def write_results(study: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json`` and ``results.nc`` (distances by student and images seen)."""
    import xarray as xr

    write_text(study / "results.json", as_json_text(results))
    done = [student for student in results["students"] if student["curve"]]
    images = sorted({point["images"] for student in done for point in student["curve"]})
    tables = {name: np.full((len(done), len(images)), np.nan) for name in ("frechet", "kid")}
    for row, student in enumerate(done):
        for point in student["curve"]:
            for name, table in tables.items():
                table[row, images.index(point["images"])] = point[name]
    data = xr.Dataset(
        {name: (("student", "images"), table) for name, table in tables.items()},
        coords={
            "student": [student["name"] for student in done],
            "images": images,
            **{
                key: ("student", [student[key] for student in done])
                for key in ("init", "ratio", "divergence", "seed")
            },
        },
        attrs={"format": "featlens.study", "version": 1, "reference": "held-out images, classifier features"},
    )
    write_netcdf(study / "results.nc", data)
