"""Forward passes on slices of the samples, and what their sites deliver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featlens.capture import Capture
from featlens.denoiser import Denoiser
from featlens.errors import UsageError
from featlens.extraction.request import Request
from featlens.samples import SampleSet

__all__ = ["Batch", "Kept", "Runner", "evaluating", "running"]


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


@dataclass(frozen=True)
class Kept:
    """What one site delivered for one batch.

    Attributes
    ----------
    features
        (B, D) on the device of the model.
    shape
        Shape of the activation before reduction, (B, ...).
    kind
        Class of the module.
    same_as
        Name of an earlier site that delivered the very same tensor; empty if there is none.
    """

    features: Tensor
    shape: tuple[int, ...]
    kind: str
    same_as: str = ""


@dataclass(frozen=True)
class Batch:
    """Features of one batch on their way to the host.

    A copy from a GPU runs beside the next forward pass; whoever needs the numbers waits for it.
    """

    features: dict[str, Tensor]
    event: Any = None

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """(B, D) float32 of each site."""
        if self.event is not None:
            self.event.synchronize()
        return {name: np.asarray(value.numpy()) for name, value in self.features.items()}


@contextlib.contextmanager
def running(model: Denoiser, samples: SampleSet, request: Request) -> Iterator[Runner]:
    """Runner with hooks in place; modes, hooks and random state are as before afterwards."""
    device = _device(model)
    forked = [device] if device.type == "cuda" else []
    with (
        evaluating(model.network),
        torch.random.fork_rng(devices=forked),
        torch.no_grad(),
        Capture(model.network, request.sites, request.reducer, stop_after=True) as seen,
    ):
        yield Runner(model, samples, seen, request)


def _device(model: Denoiser) -> torch.device:
    first = next(model.network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _input_dtype(module: nn.Module) -> torch.dtype:
    """Type of the network's numbers where all agree, so that half and double networks can be fed."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


class Runner:
    """Calls the model on rows of the samples at one sigma."""

    def __init__(self, model: Denoiser, samples: SampleSet, seen: Capture, request: Request) -> None:
        self.model, self.samples, self.seen, self.request = model, samples, seen, request
        self.device = _device(model)
        self._dtype = _input_dtype(model.network)
        self._levels: dict[tuple[float, int], Tensor] = {}

    def __call__(self, sigma: float, start: int, stop: int) -> dict[str, Kept]:
        """What every site delivers for rows ``start`` to ``stop``, in order of execution."""
        rows = slice(start, stop)
        x = self._inputs(sigma, rows)
        level = self._level(sigma, len(x))
        found: dict[str, Kept] = {}
        for suffix, labels in self._passes(rows):
            with self._precision():
                # A copy, so that a model that works in place on its input cannot spoil the next pass.
                self.seen.run(self.model, x.clone() if suffix else x, level, labels)
            self.seen.require_all()
            found |= self._kept(suffix, len(x))
        return found

    def batch(self, sigma: float, start: int, stop: int, names: list[str]) -> Batch:
        """Features of the named sites on their way to the host."""
        kept = self(sigma, start, stop)
        if missing := [name for name in names if name not in kept]:
            raise UsageError(
                f"extract: site {missing[0]!r} ran in the first forward pass and not in the one of rows "
                f"{start} to {stop} at sigma {sigma:g}; a model whose modules run differently from batch to "
                "batch has no fixed sites: leave this one out"
            )
        if self.device.type != "cuda":
            return Batch({name: kept[name].features.float().cpu() for name in names})
        # To pinned memory, in the order of the stream: the host does not wait.
        host = {name: kept[name].features.float().to("cpu", non_blocking=True) for name in names}
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return Batch(host, event)

    def _inputs(self, sigma: float, rows: slice) -> Tensor:
        make = self.samples.latents if self.request.inputs == "latents" else self.samples.noised
        x = torch.from_numpy(make(sigma, rows))
        if self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, self._dtype, non_blocking=True)

    def _level(self, sigma: float, batch: int) -> Tensor:
        """Sigma of each sample, one tensor for all batches of a size: a model may look at its values once."""
        key = sigma, batch
        if key not in self._levels:
            self._levels[key] = torch.full((batch,), sigma, device=self.device)
        return self._levels[key]

    def _passes(self, rows: slice) -> list[tuple[str, Tensor | None]]:
        """Suffix of the site names and labels of each forward pass on a batch."""
        wanted = self.request.labels
        if not self.model.num_labels or wanted == "none" or self.samples.labels is None:
            return [("", None)]
        labels = torch.from_numpy(np.ascontiguousarray(self.samples.labels[rows])).to(self.device)
        return [("@cond", labels), ("@uncond", None)] if wanted == "both" else [("", labels)]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.request.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.request.precision))

    def _kept(self, suffix: str, batch: int) -> dict[str, Kept]:
        kinds, shapes, same = self.seen.kinds, self.seen.shapes, self.seen.duplicates
        out = {}
        for name, value in self.seen.items():
            for half, features in self._halves(name, value, batch).items():
                end = f"{half}{suffix}"
                twin = f"{same[name]}{end}" if name in same else ""
                out[f"{name}{end}"] = Kept(features, shapes[name], kinds[name], twin)
        return out

    def _halves(self, name: str, value: Tensor, batch: int) -> dict[str, Tensor]:
        """Features (B, D) by suffix; of a model that doubles its batch, each half by its name."""
        halves = self.request.halves
        flat = value.flatten(1) if self.request.reducer_name == "tokens" else value
        if flat.ndim == 2 and len(flat) == batch:
            return {"": flat}
        if flat.ndim == 2 and halves and len(flat) == batch * len(halves):
            return {f"@{half}": part for half, part in zip(halves, torch.split(flat, batch), strict=True)}
        came = f"{tuple(value.shape)} came out of site {name!r} and its reduction for {batch} samples"
        if flat.ndim == 2 and batch and len(flat) == 2 * batch:
            raise UsageError(
                f"extract: {came}: the model seems to double its batch, as for classifier-free guidance; "
                "name the halves in their order, such as halves='uncond,cond', to keep them apart"
            )
        raise UsageError(f"extract: {came}; expected (samples, features); choose another site or reduction")
