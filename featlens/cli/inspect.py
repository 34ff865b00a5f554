"""Show what a feature file, a model or a set of images holds.

Feature files and models: sites and their shapes; for a file also noise levels, provenance and completeness,
for a model the digest of its weights and the order in which its sites run. With --verify every row of a file
is read and its checksum compared; damage is named by site, sigma and rows, and makes the exit code 1.

Images (digits, shapes32, a folder, .zip, .npy, .npz, .h5, CIFAR-10, hf:NAME): number, shape, range, mean and
standard deviation of each channel, the sigma_data to train with, labels, exact duplicates and NaN.

  featlens inspect teacher.h5 --verify
  featlens inspect runs/digits/teacher
  featlens inspect edm-cifar10-32x32-uncond-vp.pkl
  featlens inspect images/ --n 5000
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]

DATA_SUFFIXES = (".npy", ".npz", ".zip", ".tar.gz", ".tgz")
MODEL_SUFFIXES = (".safetensors", ".pkl")
MODEL_FILES = ("run.json", "config.json", "model_index.json", "study.toml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "target",
        metavar="FILE.h5|MODEL|DATA",
        help="feature file, or what 'featlens extract' takes as a model or as --samples",
    )
    parser.add_argument("--verify", action="store_true", help="read every row of a file and check it")
    group = parser.add_argument_group("images")
    group.add_argument("--n", "-n", type=int, help="read so many images, drawn by --seed (default: all)")
    group.add_argument("--seed", type=int, default=0, help="seed of the draw of --n")
    group.add_argument("--split", help="train, held-out or all (default)")
    group.add_argument("--values", help="range of the numbers: [-1,1], [0,1], [0,255], or any for latents")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table or JSON."""
    import json

    from featlens.errors import UsageError

    asked = next((name for name in ("n", "split", "values") if getattr(args, name) is not None), None)
    is_data = _is_data(args.target, forced=asked is not None)
    path = Path(args.target)
    is_file = path.suffix in (".h5", ".hdf5") or (
        path.is_file() and path.suffix.lower() not in MODEL_SUFFIXES
    )
    if args.verify and (is_data or not is_file):
        kind = "a set of images" if is_data else "a model"
        raise UsageError(f"--verify reads feature files; {args.target} is {kind}")
    if is_data:
        from featlens.cli.inspect_data import data_table

        found = _data(args)
        text = data_table(found)
    else:
        found = _file(path, args.verify) if is_file else _model(args.target)
        text = _table(found)
    print(json.dumps(found, indent=2) if args.json else text)  # noqa: T201
    return 1 if found.get("damage") else 0


def _is_data(target: str, forced: bool) -> bool:
    """Whether a location is that of images, by its name and, for folders and HDF5, by what lies there."""
    from featlens.errors import UsageError

    if forced or target == "digits" or re.match(r"shapes\d|hf:", target):
        return True
    path = Path(target)
    if path.is_dir() and path.suffix not in (".h5", ".hdf5"):
        if not any(path.iterdir()):
            raise UsageError(f"{target} is an empty folder; expected a model, or images in it")
        return not any((path / name).is_file() for name in MODEL_FILES) and _has_images(path)
    before = target.rpartition(":")[0] or target
    if before.lower().endswith((".h5", ".hdf5")):
        return Path(before).is_file() and (before != target or _is_plain_hdf5(path))
    return before.lower().endswith(DATA_SUFFIXES)


def _has_images(folder: Path) -> bool:
    """Whether a folder holds images, in itself or below, or CIFAR-10; the first one found settles it."""
    import os

    from featlens.sources.picture import SUFFIXES

    for _, _, names in os.walk(folder, followlinks=False):
        if any(name.lower().endswith(SUFFIXES) or re.match(r"(data|test)_batch", name) for name in names):
            return True
    return False


def _is_plain_hdf5(path: Path) -> bool:
    """Whether an HDF5 file says nothing of being a feature file, and holds what may be images."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            # Links would open other files.
            hard = (
                key for key in ("images", "x", "data") if type(file.get(key, getlink=True)) is h5py.HardLink
            )
            return "format" not in file.attrs and any(getattr(file[key], "ndim", 0) >= 3 for key in hard)
    except OSError:
        return False


def _data(args: argparse.Namespace) -> dict[str, Any]:
    from featlens.cli.progress import progress_bar
    from featlens.inspection import inspect_data

    with progress_bar(f"inspect {args.target}", "images") as update:
        report = inspect_data(args.target, args.n, args.split, args.seed, args.values, progress=update)
    return {"data": args.target, **report.to_dict()}


def _file(path: Path, verify: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from featlens.store import FeatureStore

    with FeatureStore(path) as store:
        found: dict[str, Any] = {
            "file": str(path),
            "bytes": path.stat().st_size,
            "complete": store.complete,
            "samples": len(store),
            "labelled": store.labels is not None,
            "sigmas": store.sigmas.tolist(),
            "rows_done": store.rows_done.tolist(),
            "checksummed": store.checksummed,
            "manifest": store.manifest,
            "sites": [asdict(site) for site in store.sites.values()],
        }
        if verify:
            found["damage"] = [asdict(damage) for damage in store.verify()]
    return found


def _model(location: str) -> dict[str, Any]:
    from featlens.adapters import load
    from featlens.denoiser import weights_digest
    from featlens.site import sites

    model = load(location)
    return {
        "model": location,
        "class": type(model.network).__name__,
        "parameters": sum(parameter.numel() for parameter in model.network.parameters()),
        "sample_shape": list(model.sample_shape),
        "num_labels": model.num_labels,
        "sigma_data": model.sigma_data,
        "weights_digest": weights_digest(model.network),
        "sites": [
            {
                "name": site.name,
                "kind": site.kind,
                "order": site.order,
                "shape": None if site.shape is None else list(site.shape),
                "channels": site.channels,
                "resolution": site.resolution,
            }
            for site in sites(model)
        ],
    }


def _table(found: dict[str, Any]) -> str:
    from featlens.store.open import shown

    apart = ("sites", "manifest", "damage")
    lines = [f"{key:<15} {value}" for key, value in found.items() if key not in apart]
    # What a file says is made safe: it may come from anybody.
    manifest = found.get("manifest", {}).items()
    lines += [f"  {shown(key):<13} {shown(value, most=400)}" for key, value in manifest]
    rows = [{key: _cell(key, value) for key, value in row.items()} for row in found["sites"]]
    keys = [key for key in (rows[0] if rows else {}) if any(row[key] for row in rows)]
    width = {key: max(len(key), *(len(row[key]) for row in rows)) for key in keys}
    lines += ["", "  ".join(f"{key:<{width[key]}}" for key in keys)]
    lines += ["  ".join(f"{row[key]:<{width[key]}}" for key in keys) for row in rows]
    if "damage" in found:
        lines += ["", *(_told(damage) for damage in found["damage"])]
        if not found["damage"]:
            how = "their checksums agree" if found["checksummed"] else "the file has no checksums"
            lines.append(f"verified: all rows can be read, {how}")
    return "\n".join(line.rstrip() for line in lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    return "x".join(map(str, value)) if key == "shape" else str(value)


def _told(damage: dict[str, Any]) -> str:
    return (
        f"DAMAGED: site {damage['site']!r}, sigma {damage['sigma']:g}, rows {damage['start']} to "
        f"{damage['stop']}: {damage['reason']}"
    )
