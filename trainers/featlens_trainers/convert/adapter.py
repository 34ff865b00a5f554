"""Adapter of EDM's pickles for :func:`featlens.load`: the file itself, read without running its code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featlens.errors import UsageError

if TYPE_CHECKING:
    from featlens.denoiser import Denoiser

__all__ = ["load_edm"]


def load_edm(location: str, device: str, *, sigma_init: float | None = None) -> Denoiser | None:
    """Denoiser of a ``.pkl`` of EDM, or None if the location is no pickle.

    Parameters
    ----------
    location, device
        File; where the weights go.
    sigma_init
        Noise level from which a one-step generator starts, for files of one-step generators.

    Raises
    ------
    FeatlensError
        The file is damaged, refers to unknown names or holds another network.
    """
    from featlens_trainers.convert.pickles import is_pickle

    path = Path(location)
    try:
        found = path.is_file() and is_pickle(path)
    except (OSError, ValueError):
        # Not every location could be a path.
        return None
    if not found:
        return None
    if sigma_init is not None and (type(sigma_init) not in (int, float) or not sigma_init > 0):
        raise UsageError(f"option sigma_init: expected a number above 0 such as 2.5, got {sigma_init!r}")
    from featlens_trainers.convert.edm import read_edm

    denoiser = read_edm(path).denoiser().to(device)
    if sigma_init is not None:
        denoiser.sigma_init = float(sigma_init)
    return denoiser
