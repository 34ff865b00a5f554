"""Adapter of our own runs for :func:`featlens.load`: a run folder, a snapshot folder or a snapshot file."""

from __future__ import annotations

from pathlib import Path

from featlens.denoiser import Denoiser
from featlens_trainers.runs import newest_snapshot
from featlens_trainers.snapshots import load_denoiser

__all__ = ["load_run"]


def load_run(location: str, device: str) -> Denoiser | None:
    """Averaged network of a run, or None if the location is no run of ours."""
    path = Path(location)
    if path.is_file() and path.suffix == ".safetensors":
        return load_denoiser(path, device)[0]
    if (path / "ema.safetensors").is_file():
        return load_denoiser(path / "ema.safetensors", device)[0]
    if (path / "run.json").is_file():
        return load_denoiser(newest_snapshot(path), device)[0]
    return None
