"""Show what a feature file or a model holds.

Sites and their shapes; for a file also noise levels, provenance and completeness, for a model the digest of
its weights and the order in which its sites run. With --verify every row of a file is read and its checksum
compared; damage is named by site, sigma and rows, and makes the exit code 1.

  featlens inspect teacher.h5 --verify
  featlens inspect runs/digits/teacher
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "target", metavar="FILE.h5|MODEL", help="feature file, or anything 'featlens extract' takes"
    )
    parser.add_argument("--verify", action="store_true", help="read every row of a file and check it")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table or JSON."""
    import json

    from featlens.errors import UsageError

    path = Path(args.target)
    is_file = path.suffix in (".h5", ".hdf5") or (path.is_file() and path.suffix != ".safetensors")
    if args.verify and not is_file:
        raise UsageError(f"--verify reads feature files; {args.target} is a model")
    found = _file(path, args.verify) if is_file else _model(args.target)
    print(json.dumps(found, indent=2) if args.json else _table(found))  # noqa: T201
    return 1 if found.get("damage") else 0


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
