"""Averages chosen after training: any power-function profile, from stored snapshots of a few.

A training keeps averages of relative widths s_1, s_2 (``TeacherConfig.ema_powers``) and stores them now and
then. Each stored average is the integral of the weights' path theta(t) against a known profile,

    p(t; gamma, T) = (gamma + 1) t^gamma / T^(gamma + 1)   for t up to T, 0 beyond,

so a combination of stored averages has the combined profile. The combination whose profile is nearest to a
wished one in the least-squares sense solves a small linear system of inner products of profiles (arXiv
2312.02696, section 3.2 and appendix C). Ours adds the condition that the factors sum to 1, as every
profile's integral does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.files import make_folder
from featlens_trainers.ema import MAX_POWER_STD, exponent_of
from featlens_trainers.snapshots import load_denoiser, load_weights, read_tensors, save_denoiser
from featlens_trainers.training import Training

__all__ = [
    "PowerSnapshot",
    "find_snapshots",
    "posthoc_denoiser",
    "profile_product",
    "reconstruct",
    "reconstruction_weights",
    "save_averages",
    "write_posthoc",
]

PREFIX = "ema-power"


@dataclass(frozen=True)
class PowerSnapshot:
    """A stored average: relative width of its profile, images seen, and how to get its state dict."""

    std: float
    images: int
    load: Callable[[], Mapping[str, Tensor]]


def profile_product(first: tuple[float, int], second: tuple[float, int]) -> float:
    """Integral of the product of two profiles, each given as (relative width, images) (appendix C).

    >>> flat = 12**-0.5
    >>> round(profile_product((flat, 100), (flat, 400)) * 400, 6)
    1.0
    """
    (g, t), (h, u) = (exponent_of(first[0]), first[1]), (exponent_of(second[0]), second[1])
    least = min(t, u)
    return float((g + 1) * (h + 1) / (g + h + 1) * (least / t) ** g * (least / u) ** h * least / (t * u))


def reconstruction_weights(
    there: Sequence[tuple[float, int]], std: float, images: int
) -> tuple[NDArray[np.float64], float]:
    """Factor of each stored average in the one of width ``std`` at ``images``, and the profile's error.

    Parameters
    ----------
    there
        (relative width, images) of each stored average.
    std, images
        The average that is wished for.

    Returns
    -------
    factors
        (len(there),) float64; they add up to 1.
    error
        Distance of the combined profile from the wished one over the norm of the wished one: 0 is exact.
    """
    # Profiles of unit norm, so that the system is as well conditioned as the profiles are different.
    norms = np.array([profile_product(entry, entry) ** 0.5 for entry in there])
    gram = np.array([[profile_product(a, b) for b in there] for a in there]) / np.outer(norms, norms)
    wish = (std, images)
    norm = profile_product(wish, wish) ** 0.5
    target = np.array([profile_product(entry, wish) for entry in there]) / (norms * norm)
    # One more equation, with its multiplier: the factors add up to 1. Weights have a large constant part,
    # of which a combination whose factors miss 1 by little is already far away.
    scale = norm / norms
    system = np.block([[gram, scale[:, None]], [scale[None, :], np.zeros((1, 1))]])
    solved = np.linalg.lstsq(system, np.append(target, 1.0), rcond=1e-13)[0][:-1]
    square = 1.0 - 2.0 * solved @ target + solved @ gram @ solved
    return solved * scale, float(max(square, 0.0) ** 0.5)


def reconstruct(
    snapshots: Sequence[PowerSnapshot], std: float, images: int | None = None
) -> dict[str, Tensor]:
    """State dict of the average of relative width ``std`` at ``images``, from stored averages.

    Parameters
    ----------
    snapshots
        Stored averages, of two different widths for a good result; those after ``images`` are left out.
    std
        Relative width of the wished profile, above 0 and at most 0.288 (the mean of all weights).
    images
        Images seen at the wished average's end, one of the snapshots' counts (default: the last).
    """
    chosen, end = _chosen(snapshots, std, images)
    factors, _ = reconstruction_weights([(entry.std, entry.images) for entry in chosen], std, end)
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for entry, factor in zip(chosen, factors.tolist(), strict=True):
        state = entry.load()
        if sums:
            _require_alike(sums, state)
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                # A counter has no average: the newest holds.
                sums[name] = tensor.clone()
                continue
            kinds[name] = tensor.dtype
            part = tensor.double() * factor
            sums[name] = sums[name] + part if name in sums else part
    return {name: total.to(kinds.get(name, total.dtype)) for name, total in sums.items()}


def _require_alike(sums: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    wrong = sorted(
        name
        for name in {*sums, *state}
        if name not in sums or name not in state or sums[name].shape != state[name].shape
    )
    if wrong:
        raise FeatlensError(
            f"the snapshots are of different networks: {len(wrong)} tensors differ, first {wrong[0]!r}; "
            "give snapshots of one run"
        )


def _chosen(
    snapshots: Sequence[PowerSnapshot], std: float, images: int | None
) -> tuple[list[PowerSnapshot], int]:
    exponent_of(std)
    if not snapshots:
        raise UsageError(
            "post-hoc average: there are no stored power-function averages; train with ema_powers, such as "
            "[0.05, 0.1], and snapshot_images"
        )
    counts = sorted({entry.images for entry in snapshots})
    end = counts[-1] if images is None else images
    if end not in counts:
        # Between two snapshots no combination of profiles ends where the wished one does.
        near = " or ".join(f"{count:,}" for count in sorted(sorted(counts, key=lambda n: abs(n - end))[:2]))
        raise UsageError(
            f"post-hoc average: images must be those of a snapshot, got {end:,}; nearest: {near}"
        )
    return sorted((entry for entry in snapshots if entry.images <= end), key=lambda entry: entry.images), end


def save_averages(folder: os.PathLike[str] | str, training: Training, **about: Any) -> list[Path]:
    """Store every average of a denoiser as ``<track>.safetensors`` in ``folder``; returns the paths.

    ``about`` adds facts to the description, such as ``sigma_init``.
    """
    where = make_folder(Path(folder))
    out = []
    for name in training.averages:
        average = training.networks[name]
        if isinstance(average, EDMDenoiser):
            out.append(where / f"{name}.safetensors")
            save_denoiser(out[-1], average, images=training.images, **about)
    return out


def find_snapshots(run_folder: os.PathLike[str] | str) -> list[PowerSnapshot]:
    """Stored power-function averages of a run, oldest first; weights are read when they are needed."""
    return [snapshot for snapshot, _ in _with_paths(run_folder)]


def _with_paths(run_folder: os.PathLike[str] | str) -> list[tuple[PowerSnapshot, Path]]:
    found = []
    for path in Path(run_folder).glob(f"snapshots/img-*/{PREFIX}*.safetensors"):
        digits, width = path.parent.name.removeprefix("img-"), path.stem.removeprefix(PREFIX)
        try:
            images, std = int(digits), float(width)
        except ValueError:
            continue
        if images > 0 and 0 < std <= MAX_POWER_STD:
            found.append((PowerSnapshot(std, images, functools.partial(_weights, path)), path))
    return sorted(found, key=lambda entry: (entry[0].images, entry[0].std))


def _weights(path: Path) -> dict[str, Tensor]:
    return read_tensors(path)[0]


def posthoc_denoiser(
    run_folder: os.PathLike[str] | str, std: float, images: int | None = None
) -> tuple[EDMDenoiser, dict[str, Any]]:
    """Denoiser of the average of relative width ``std`` of a run, and facts about it.

    The run must have been trained with ``ema_powers``, and holds
    ``snapshots/img-*/ema-power<std>.safetensors``.

    Parameters
    ----------
    run_folder
        Folder of a training.
    std, images
        As in :func:`reconstruct`.
    """
    paths = dict(_with_paths(run_folder))
    if not paths:
        raise FeatlensError(
            f"{run_folder} holds no snapshots of power-function averages "
            f"(snapshots/img-*/{PREFIX}0.05.safetensors); train with ema_powers = [0.05, 0.1] and "
            "snapshot_images above 0"
        )
    chosen, end = _chosen(list(paths), std, images)
    newest = paths[chosen[-1]]
    denoiser, about = load_denoiser(newest)
    load_weights(denoiser, reconstruct(chosen, std, end), newest)
    _, error = reconstruction_weights([(entry.std, entry.images) for entry in chosen], std, end)
    about |= {
        "images": end,
        "posthoc": {"std": std, "images": end, "snapshots": len(chosen), "profile_error": error},
    }
    return denoiser, about


def write_posthoc(
    run_folder: os.PathLike[str] | str,
    std: float,
    out: os.PathLike[str] | str,
    images: int | None = None,
) -> dict[str, Any]:
    """Write the denoiser of :func:`posthoc_denoiser` as a snapshot ``out``; returns the facts about it."""
    denoiser, about = posthoc_denoiser(run_folder, std, images)
    kept = {key: value for key, value in about.items() if key not in ("kind", "network", "sigma_data")}
    save_denoiser(out, denoiser, **kept)
    return about
