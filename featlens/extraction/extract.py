"""Extraction: run a denoiser on noised samples over a grid of sigmas and store what its sites do."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.denoiser import Denoiser
from featlens.errors import FeatlensError, FeatlensWarning
from featlens.extraction.background import BackgroundWriter
from featlens.extraction.plan import Layout, place, warn_of_size
from featlens.extraction.processes import Processes
from featlens.extraction.request import Request
from featlens.extraction.runner import Runner, running
from featlens.reduce import Reducer
from featlens.samples import SampleSet
from featlens.site import Selection
from featlens.store import FeatureStore, FeatureWriter
from featlens.store.pack import pack
from featlens.store.shards import merge, shard_path, shard_rows
from featlens.store.writer import require_same_request

__all__ = ["Progress", "extract"]

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all), counted over all sigmas."""


def extract(
    model: Denoiser,
    samples: SampleSet,
    sigmas: Sequence[float] | None = None,
    sites: Selection | None = None,
    out: os.PathLike[str] | str = "features.h5",
    reduce: str | Reducer = "gap",
    batch: int = 128,
    device: str | None = None,
    name: str = "",
    progress: Progress | None = None,
    *,
    inputs: str = "noised",
    labels: str = "given",
    halves: Sequence[str] = (),
    dtype: str = "float32",
    precision: str | None = None,
    compress: bool = False,
    warn_bytes: float | None = 1e10,
    distributed: bool = False,
) -> FeatureStore:
    """Features of ``model`` at every site and sigma on noised samples, in one HDF5 file.

    Parameters
    ----------
    model
        A denoiser; it is called as ``model(x0 + sigma * eps, sigma, labels)``.
    samples
        Images; the noise of each depends only on (its seed, sample id, sigma).
    sigmas
        Noise levels, each above 0, in units of the data. With ``inputs="latents"`` the model's own
        ``sigma_init``, where it has one, if None.
    sites
        Selection of modules of ``model.network``, see :func:`featlens.sites`. By default the blocks one level
        down, ``"*.*"``, or everything where a network has no such level.
    out
        Path of the file. A complete file of the same request is used as it is, an interrupted one is
        finished; one of another request is refused.
    reduce
        Reduction of each activation to (B, D), see :mod:`featlens.reduce`.
    batch
        Images a forward pass. Changes speed and memory, not the noise.
    device
        Where to run, such as ``"cuda"``; by default where the model is.
    name
        What to call the model in the file's manifest.
    progress
        Called with (rows done, rows in all) of this process.
    inputs
        ``"noised"``: ``x0 + sigma * eps``. ``"latents"``: ``sigma * eps`` alone, what a one-step generator
        starts from.
    labels
        For conditional models: ``"given"`` those of the samples, ``"none"`` no labels (unconditional), or
        ``"both"``, two passes whose sites are kept apart as ``site@cond`` and ``site@uncond``.
    halves
        Names of the parts of the batch of a model that doubles it inside, such as ``("uncond", "cond")`` for
        classifier-free guidance, in their order; sites are kept apart as ``site@uncond`` and ``site@cond``.
    dtype
        Type of the stored features, ``"float32"`` or ``"float16"``. Reading gives float32.
    precision
        Autocast the forward pass to ``"bfloat16"`` or ``"float16"``.
    compress
        Compress the finished file without loss.
    warn_bytes
        Warn if the file will be larger; None for never.
    distributed
        Share the work with the other processes of ``torchrun``, ``accelerate launch`` or the present process
        group, which all have to call this with the same arguments. Each writes a shard beside ``out``;
        the first process merges them. The result equals that of one process.

    Returns
    -------
    FeatureStore
        Open for reading.
    """
    request = Request.checked(
        model, samples, sigmas, sites, reduce, batch, halves,
        inputs=inputs, labels=labels, dtype=dtype, precision=precision,
    )  # fmt: skip
    place(model, device)
    job = _Job(model, samples, request, request.manifest(model, samples, name), progress, warn_bytes)
    if distributed:
        with Processes.joined() as processes:
            if processes.count > 1:
                _together(job, Path(out), compress, processes)
            else:
                _alone(job, Path(out), compress)
    else:
        _alone(job, Path(out), compress)
    return FeatureStore(out)


class _Job:
    """One extraction, the part of it that this process does, and where it is written."""

    def __init__(
        self,
        model: Denoiser,
        samples: SampleSet,
        request: Request,
        manifest: dict[str, Any],
        progress: Progress | None,
        warn_bytes: float | None,
    ) -> None:
        self.model, self.samples, self.request, self.manifest = model, samples, request, manifest
        self.progress, self.warn_bytes = progress, warn_bytes

    def finished(self, path: Path) -> bool:
        """Whether the file is there and complete; one of another request is an error."""
        if not path.exists():
            return False
        # Read first: a complete file may be open elsewhere, or lie in a folder that is read-only.
        with FeatureStore(path) as there:
            require_same_request(there, self.manifest)
            return there.complete

    def write(self, path: Path, processes: Processes) -> None:
        """Write this process' rows into ``path``, or into a shard of it where there are several processes."""
        with running(self.model, self.samples, self.request) as runner:
            layout = Layout.of(runner)
            if processes.index == 0:
                warn_of_size(layout, self.warn_bytes, path)
            rows, manifest, target = slice(0, layout.rows), self.manifest, path
            if processes.count > 1:
                rows = shard_rows(layout.rows, layout.span, processes.index, processes.count)
                if rows.start >= rows.stop:
                    return
                target = shard_path(path, processes.index, processes.count)
                shard = {"index": processes.index, "count": processes.count}
                manifest = {**manifest, "shard": {**shard, "first": rows.start, "total": layout.rows}}
            writer = self._writer(target, layout, rows, manifest)
            if writer is not None:
                with writer:
                    _fill(writer, runner, layout, rows, self.progress)

    def _writer(
        self, path: Path, layout: Layout, rows: slice, manifest: dict[str, Any]
    ) -> FeatureWriter | None:
        if path.exists():
            with FeatureStore(path) as there:
                require_same_request(there, manifest)
                complete = there.complete
            return None if complete else FeatureWriter.resume(path, manifest)
        labels: NDArray[np.int64] | None = self.samples.labels
        return FeatureWriter.create(
            path,
            layout.sites,
            self.request.sigmas,
            self.samples.ids[rows],
            manifest,
            None if labels is None else labels[rows],
            dtype=self.request.dtype,
            block=layout.block,
        )


def _alone(job: _Job, out: Path, compress: bool) -> None:
    if not job.finished(out):
        if left := sorted(out.parent.glob(f"{glob.escape(out.stem)}.shard-*-of-*{out.suffix}")):
            warnings.warn(
                f"{left[0]} was left by several processes that did not finish, and is of no use to one; "
                "remove it, or run as many processes again",
                FeatlensWarning,
                stacklevel=3,
            )
        job.write(out, Processes())
    if compress:
        pack(out)


def _together(job: _Job, out: Path, compress: bool, processes: Processes) -> None:
    """Shares of all processes, merged by the first one; an error of one ends all of them."""
    shards = [shard_path(out, index, processes.count) for index in range(processes.count)]

    def share() -> None:
        if not done and out.exists():
            raise FeatlensError(
                f"{out} was begun by one process and is unfinished; finish it with one process, or remove it"
            )
        if not done:
            job.write(out, processes)

    def gather() -> None:
        if processes.index:
            return
        if not done:
            merge(out, [shard for shard in shards if shard.exists()])
        if compress:
            pack(out)
        for shard in shards:
            shard.unlink(missing_ok=True)

    error, done = _tried(lambda: job.finished(out))
    processes.settle(error)
    for step in (share, gather):
        processes.settle(_tried(step)[0])


def _tried(step: Callable[[], Any]) -> tuple[Exception | None, Any]:
    try:
        return None, step()
    except Exception as error:
        return error, None


def _fill(
    writer: FeatureWriter, runner: Runner, layout: Layout, rows: slice, progress: Progress | None
) -> None:
    """Work through what is left, block by block; whole blocks only, so that batches never shift."""
    sigmas, batch = runner.request.sigmas, runner.request.batch
    total, names = rows.stop - rows.start, list(writer.names)
    begun = [writer.done(index) for index in range(len(sigmas))]
    with BackgroundWriter(writer, sigmas, rows.start) as background:
        for index, sigma in enumerate(sigmas):
            for start in range(begun[index], total, layout.span):
                stop = min(start + layout.span, total)
                edges = range(rows.start + start, rows.start + stop, batch)
                batches = [runner.batch(sigma, at, min(at + batch, rows.start + stop), names) for at in edges]
                background.put(index, start, batches)
                if progress is not None:
                    progress(index * total + stop, len(sigmas) * total)
