"""Adapter of our own networks for :func:`featlens.load`.

A run folder, a snapshot folder or file, or a folder of diffusers that ``featlens convert`` wrote.
"""

from __future__ import annotations

from pathlib import Path

from featlens.denoiser import Denoiser
from featlens_trainers.convert.folders import read_diffusers_folder
from featlens_trainers.convert.names import is_ours
from featlens_trainers.runs import newest_snapshot
from featlens_trainers.snapshots import load_denoiser

__all__ = ["load_run"]


def load_run(location: str, device: str) -> Denoiser | None:
    """Averaged network of a run, or None if the location is no run of ours.

    Its attribute ``sigma_init`` is the noise level from which students of its study start.
    """
    path = Path(location)
    if path.is_file() and path.suffix == ".safetensors":
        return _loaded(path, device)
    if (path / "ema.safetensors").is_file():
        return _loaded(path / "ema.safetensors", device)
    if (path / "run.json").is_file():
        return _loaded(newest_snapshot(path), device)
    if is_ours(path):
        converted = read_diffusers_folder(path)
        denoiser = converted.denoiser.to(device)
        denoiser.sigma_init = converted.sigma_init
        return denoiser
    return None


def _loaded(path: Path, device: str) -> Denoiser:
    denoiser, about = load_denoiser(path, device)
    if "sigma_init" in about:
        denoiser.sigma_init = float(about["sigma_init"])
    return denoiser
