"""Extraction: run a denoiser on noised samples over a grid of sigmas and store what its sites do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featlens.capture import Capture
from featlens.denoiser import Denoiser, weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens.reduce import Reducer, resolve
from featlens.samples import SampleSet
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.writer import require_same_request

__all__ = ["Progress", "evaluating", "extract"]

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all), counted over all sigmas."""


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's own mode is restored afterwards."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def extract(
    model: Denoiser,
    samples: SampleSet,
    sigmas: Sequence[float],
    sites: str | Sequence[str] = "*.*",
    out: os.PathLike[str] | str = "features.h5",
    reduce: str | Reducer = "gap",
    batch: int = 128,
    device: str | None = None,
    name: str = "",
    progress: Progress | None = None,
) -> FeatureStore:
    """Features of ``model`` at every site and sigma on noised samples, in one HDF5 file.

    Parameters
    ----------
    model
        A denoiser; it is called as ``model(x0 + sigma * eps, sigma, labels)``.
    samples
        Images; the noise of each depends only on (its seed, sample id, sigma).
    sigmas
        Noise levels, each above 0, in units of the data.
    sites
        Glob pattern or patterns over the modules of ``model.network``.
    out
        Path of the file. A complete file of the same request is used as it is, an interrupted one is
        finished; one of another request is refused.
    reduce
        Reduction of each activation to (B, D).
    batch
        Images a forward pass. Changes speed and memory, not the noise.
    device
        Where to run, such as ``"cuda"``; by default where the model is.
    name
        What to call the model in the file's manifest.
    progress
        Called with (rows done, rows in all).

    Returns
    -------
    FeatureStore
        Open for reading.
    """
    levels = _checked_sigmas(sigmas)
    if batch < 1:
        raise UsageError(f"extract: a batch holds at least one image, got {batch}")
    if samples.shape != tuple(model.sample_shape):
        raise UsageError(
            f"extract: the model takes samples of shape {tuple(model.sample_shape)}, "
            f"{samples.name!r} has {samples.shape}"
        )
    reducer_name, reducer = resolve(reduce)
    if device is not None:
        (model if isinstance(model, nn.Module) else model.network).to(device)
    manifest = {
        "model": name,
        "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
        "network": repr(getattr(model.network, "config", type(model.network).__qualname__)),
        "sigma_data": float(model.sigma_data),
        "weights_digest": weights_digest(model.network),
        "sites": [sites] if isinstance(sites, str) else list(sites),
        "reducer": reducer_name,
        "sample_set": samples.name,
        "sample_digest": samples.digest,
        "noise_seed": samples.seed,
        "sigmas": levels,
        "dtype": "float32",
    }
    with evaluating(model.network), torch.no_grad(), Capture(model.network, sites, reducer) as seen:
        runner = _Runner(model, samples, seen)
        writer = _open_writer(Path(out), manifest, runner, levels, reducer_name)
        if writer is not None:
            with writer:
                _fill(writer, runner, levels, batch, progress)
    return FeatureStore(out)


def _checked_sigmas(sigmas: Sequence[float]) -> list[float]:
    levels = [float(sigma) for sigma in sigmas]
    if not levels or not all(np.isfinite(levels)) or min(levels) <= 0:
        raise UsageError(f"extract: sigmas must be one or more numbers above 0, got {levels}")
    if len(set(levels)) != len(levels):
        raise UsageError(f"extract: a sigma is given twice in {levels}")
    return levels


class _Runner:
    """Forward passes on slices of the samples."""

    def __init__(self, model: Denoiser, samples: SampleSet, seen: Capture) -> None:
        self.model, self.samples, self.seen = model, samples, seen
        first = next(model.network.parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device

    def __call__(self, sigma: float, start: int, stop: int) -> dict[str, NDArray[np.float32]]:
        rows = slice(start, stop)
        x = torch.from_numpy(self.samples.noised(sigma, rows)).to(self.device)
        level = torch.full((len(x),), sigma, device=self.device)
        self.model(x, level, self._labels(rows))
        self.seen.require_all()
        return {name: _array(name, value, len(x)) for name, value in self.seen.items()}

    def _labels(self, rows: slice) -> Tensor | None:
        if not self.model.num_labels:
            return None
        if self.samples.labels is None:
            raise UsageError(
                f"extract: the model is conditional ({self.model.num_labels} classes), but "
                f"{self.samples.name!r} has no labels"
            )
        highest = int(self.samples.labels.max())
        if highest >= self.model.num_labels:
            raise UsageError(
                f"extract: the model knows labels 0 to {self.model.num_labels - 1}, "
                f"{self.samples.name!r} has {highest}"
            )
        return torch.from_numpy(self.samples.labels[rows]).to(self.device)


def _array(name: str, value: Tensor, batch: int) -> NDArray[np.float32]:
    if value.ndim != 2 or len(value) != batch:
        raise UsageError(
            f"extract: {tuple(value.shape)} came out of site {name!r} and its reduction for {batch} samples; "
            "expected (samples, features); choose another site or reduction"
        )
    return np.asarray(value.float().cpu().numpy())


def _open_writer(
    out: Path, manifest: dict[str, Any], runner: _Runner, sigmas: list[float], reducer: str
) -> FeatureWriter | None:
    """Writer for what is left to do; None if the file is complete."""
    if out.exists():
        # Read first: a complete file may be open elsewhere, or lie in a folder that is read-only.
        with FeatureStore(out) as there:
            require_same_request(there, manifest)
            complete = there.complete
        return None if complete else FeatureWriter.resume(out, manifest)
    runner(sigmas[0], 0, 1)
    shapes = runner.seen.shapes
    infos = [
        SiteInfo(
            site,
            order,
            int(runner.seen[site].shape[1]),
            channels=shape[1] if len(shape) == 4 else shape[-1],
            resolution=shape[2] if len(shape) == 4 else 0,
            reducer=reducer,
        )
        for order, (site, shape) in enumerate(shapes.items())
    ]
    samples = runner.samples
    return FeatureWriter.create(out, infos, sigmas, samples.ids, manifest, samples.labels)


def _fill(
    writer: FeatureWriter, runner: _Runner, sigmas: list[float], batch: int, progress: Progress | None
) -> None:
    total = len(runner.samples)
    for index, sigma in enumerate(sigmas):
        start = writer.done(index)
        while start < total:
            stop = min(start + writer.block, total)
            parts = [runner(sigma, at, min(at + batch, stop)) for at in range(start, stop, batch)]
            block = {site: np.concatenate([part[site] for part in parts]) for site in parts[0]}
            _require_finite(block, sigma, start)
            writer.append(index, block)
            start = stop
            if progress is not None:
                progress(index * total + start, len(sigmas) * total)


def _require_finite(block: dict[str, NDArray[np.float32]], sigma: float, first: int) -> None:
    for site, values in block.items():
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            row = first + int(np.argmax(bad))
            raise FeatlensError(
                f"extract: features of site {site!r} at sigma {sigma:g} are not finite in sample row {row}; "
                "the model has diverged, or the reduction overflows"
            )
