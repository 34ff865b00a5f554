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
from featlens.errors import FeatlensError, UsageError
from featlens.extraction.request import Request
from featlens.keeping import version_of
from featlens.samples import SampleSet
from featlens.undisturbed import undisturbed

__all__ = ["Batch", "Kept", "Runner", "running"]


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
    """Runner; modes, hooks and random state are as before afterwards."""
    with undisturbed(model.network):
        yield Runner(model, samples, request)


def _device(model: Denoiser) -> torch.device:
    first = next(model.network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _input_dtype(module: nn.Module) -> torch.dtype:
    """Type of the network's numbers where all agree, so that half and double networks can be fed."""
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


@contextlib.contextmanager
def _explaining(where: str) -> Iterator[None]:
    """An exception of the model's own code as one line; its traceback stays behind it."""
    try:
        yield
    except (FeatlensError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        said = " ".join(str(error).split())[:200]
        raise FeatlensError(
            f"extract: the model or a reduction failed on {where}: {type(error).__name__}: {said}"
        ) from error


class Runner:
    """Calls the model on rows of the samples at one sigma.

    The first pass at each sigma, with and without labels, runs whole: it shows which sites run there, and
    after which call the other passes may end.
    """

    def __init__(self, model: Denoiser, samples: SampleSet, request: Request) -> None:
        self.model, self.samples, self.request = model, samples, request
        self._captures: dict[tuple[float, str], Capture] = {}
        self.device = _device(model)
        self._dtype = _input_dtype(model.network)
        self._levels: dict[tuple[float, int], tuple[Tensor, int | None]] = {}

    def __call__(self, sigma: float, start: int, stop: int) -> dict[str, Kept]:
        """What every site delivers for rows ``start`` to ``stop``, in order of execution."""
        rows = slice(start, stop)
        x = self._inputs(sigma, rows)
        found: dict[str, Kept] = {}
        for suffix, labels in self._passes(rows):
            seen = self._capture(sigma, suffix)
            # A copy, so that a model that works in place on its input cannot spoil the next pass.
            arguments = (x.clone() if suffix else x, self._level(sigma, len(x)), labels)
            with self._precision(), _explaining(f"rows {start} to {stop} at sigma {sigma:g}"):
                seen.run(self.model, *arguments)
            seen.require_all()
            found |= self._kept(seen, suffix, len(x))
        return found

    def _capture(self, sigma: float, suffix: str) -> Capture:
        key = sigma, suffix
        if key not in self._captures:
            # What was kept at another sigma is let go.
            self._captures = {old: seen for old, seen in self._captures.items() if old[0] == sigma}
            sites, reducer = self.request.sites, self.request.reducer
            self._captures[key] = Capture(self.model.network, sites, reducer, stop_after=True)
        return self._captures[key]

    def batch(self, sigma: float, start: int, stop: int, names: list[str]) -> Batch:
        """Features of the named sites on their way to the host."""
        kept = self(sigma, start, stop)
        stored = [name for name, one in kept.items() if not one.same_as]
        if differing := sorted(set(stored) ^ set(names)):
            how = "ran before, but not" if differing[0] in names else "did not run before, but did"
            raise UsageError(
                f"extract: site {differing[0]!r} {how} with rows {start} to {stop} at sigma {sigma:g}; "
                "modules that run differently from pass to pass are no fixed sites: leave this one out"
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
        level, version = self._levels.get((sigma, batch), (None, None))
        # A model may also change it in place, which is not counted in inference mode.
        if level is None or version is None or version != version_of(level):
            level = torch.full((batch,), sigma, device=self.device)
            self._levels[sigma, batch] = level, version_of(level)
        return level

    def _passes(self, rows: slice) -> list[tuple[str, Tensor | None]]:
        """Suffix of the site names and labels of each forward pass on a batch."""
        wanted = self.request.labels
        if not self.model.num_labels or wanted == "none" or self.samples.labels is None:
            return [("", None)]
        # A copy: a model that changes labels in place, to drop some, must not change those of the samples.
        labels = torch.from_numpy(self.samples.labels[rows].copy()).to(self.device)
        return [("@cond", labels), ("@uncond", None)] if wanted == "both" else [("", labels)]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.request.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.request.precision))

    def _kept(self, seen: Capture, suffix: str, batch: int) -> dict[str, Kept]:
        kinds, shapes, same = seen.kinds, seen.shapes, seen.duplicates
        out = {}
        for name, value in seen.items():
            for half, features in self._halves(name, value, batch).items():
                end = f"{half}{suffix}"
                twin = f"{same[name]}{end}" if name in same else ""
                out[f"{name}{end}"] = Kept(features, shapes[name], kinds[name], twin)
        return out

    def _halves(self, name: str, value: Tensor, batch: int) -> dict[str, Tensor]:
        """Features (B, D) by suffix; of a model that doubles its batch, each half by its name."""
        halves = self.request.halves
        flat = value.flatten(1) if self.request.reducer_name == "tokens" else value
        if not flat.numel():
            raise UsageError(f"extract: nothing is in {tuple(flat.shape)} of site {name!r}; leave it out")
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
