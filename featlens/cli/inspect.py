"""Show what a feature file or a model holds.

Sites and their shapes; for a file also noise levels, provenance and completeness, for a model the digest of
its weights.

  featlens inspect teacher.h5
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
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table or JSON."""
    import json

    path = Path(args.target)
    is_file = path.suffix in (".h5", ".hdf5") or (path.is_file() and path.suffix != ".safetensors")
    found = _file(path) if is_file else _model(args.target)
    print(json.dumps(found, indent=2) if args.json else _table(found))  # noqa: T201
    return 0


def _file(path: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from featlens.store import FeatureStore

    with FeatureStore(path) as store:
        return {
            "file": str(path),
            "complete": store.complete,
            "samples": len(store),
            "labelled": store.labels is not None,
            "sigmas": store.sigmas.tolist(),
            "rows_done": store.rows_done.tolist(),
            "manifest": store.manifest,
            "sites": [asdict(site) for site in store.sites.values()],
        }


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
        "sites": [{"name": site.name, "kind": site.kind} for site in sites(model.network)],
    }


def _table(found: dict[str, Any]) -> str:
    lines = [f"{key:<15} {value}" for key, value in found.items() if key not in ("sites", "manifest")]
    lines += [f"  {key:<13} {value}" for key, value in found.get("manifest", {}).items()]
    rows = found["sites"]
    keys = list(rows[0]) if rows else []
    width = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in keys}
    lines += ["", "  ".join(f"{key:<{width[key]}}" for key in keys)]
    lines += ["  ".join(f"{row[key]!s:<{width[key]}}" for key in keys) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
