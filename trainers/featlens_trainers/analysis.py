"""Features, comparison with the teacher and linear probes of one network of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featlens import compare, extract
from featlens.comparison.saved import VERSION
from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import FeatlensError
from featlens.files import make_folder, write_text
from featlens_probes import probe
from featlens_trainers.config import to_mapping
from featlens_trainers.initialisation import build_denoiser, student_seed
from featlens_trainers.runs import Report, newest_snapshot
from featlens_trainers.settings import StudyConfig
from featlens_trainers.snapshots import load_denoiser
from featlens_trainers.tasks import held_out_samples

__all__ = ["analysis_paths", "run_analysis"]


def analysis_paths(study: Path, name: str) -> dict[str, Path]:
    """Files that the analysis of a run leaves in the study's folder."""
    folder = study / "features"
    return {
        "features": folder / f"{name}.h5",
        "comparison": folder / f"{name}-vs-teacher.nc",
        "probe": folder / f"{name}-probe.json",
        "record": folder / f"{name}-analysis.json",
    }


def run_analysis(
    study: Path, config: StudyConfig, device: str, name: str, report: Report | None = None
) -> None:
    """Extract features of ``study/name`` on held-out images, compare them with the teacher's, and probe them.

    ``name`` is a run of the study, or ``"untrained"`` for the weights that the first random student starts
    from. No network of the study has seen these images. Does nothing if it was done before with the same
    weights.
    """
    settings = config.features
    denoiser = _network(study, config, device, name)
    samples = held_out_samples(config)
    paths = analysis_paths(study, name)
    make_folder(study / "features")
    key: dict[str, Any] = {
        "weights_digest": weights_digest(denoiser.network),
        "sample_digest": samples.digest,
        "features": to_mapping(settings),
    }
    if name != "teacher":
        key["teacher"] = json.loads(analysis_paths(study, "teacher")["record"].read_text(encoding="utf-8"))[
            "weights_digest"
        ]
        # Comparisons of an earlier layout, without confidence intervals, are made again.
        key["comparison"] = VERSION
    wanted = [paths["features"], paths["probe"]] + ([paths["comparison"]] if name != "teacher" else [])
    if _done(paths, key) and all(path.exists() for path in wanted):
        return
    paths["record"].unlink(missing_ok=True)
    _forget_other_weights(paths["features"], str(key["weights_digest"]))

    def say(remark: str, scale: int) -> Any:
        return lambda done, total: (
            report(done * scale // max(total, 1), 100, remark) if report is not None else None
        )

    extract(
        denoiser,
        samples,
        settings.sigmas,
        settings.sites,
        paths["features"],
        settings.reduce,
        name=name,
        progress=say("extract", 40),
    ).close()
    result = probe(
        paths["features"], splits=settings.probe_splits, seed=config.seed, progress=say("probe", 60)
    )
    result.save(paths["probe"])
    if name != "teacher":
        comparison = compare(
            {"teacher": analysis_paths(study, "teacher")["features"], name: paths["features"]},
            permutations=settings.permutations,
            seed=config.seed,
            progress=say("compare", 100),
        )
        comparison.save(paths["comparison"])
    write_text(paths["record"], json.dumps(key) + "\n")


def _network(study: Path, config: StudyConfig, device: str, name: str) -> EDMDenoiser:
    if name == "untrained":
        seed = student_seed(config, config.seeds[0])
        return build_denoiser(config.network, config.sigma_data, seed).to(device)
    return load_denoiser(newest_snapshot(study / name), device)[0]


def _done(paths: dict[str, Path], key: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(paths["record"].read_text(encoding="utf-8")) == json.loads(json.dumps(key)))
    except (OSError, json.JSONDecodeError):
        return False


def _forget_other_weights(path: Path, digest: str) -> None:
    """Remove features of an earlier network of the same name, which extraction would refuse to continue."""
    from featlens import FeatureStore

    if not path.exists():
        return
    try:
        with FeatureStore(path) as store:
            same = store.manifest.get("weights_digest") == digest
    except FeatlensError:
        same = False
    if not same:
        path.unlink()
