"""How large a feature file will be and how long it takes, found out on one batch before the run."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from featlens.denoiser import Denoiser
from featlens.errors import FeatlensWarning, UsageError
from featlens.extraction.request import Request
from featlens.extraction.runner import Kept, Runner, running
from featlens.files import human_bytes
from featlens.reduce import Reducer
from featlens.samples import SampleSet
from featlens.site import Selection, describe
from featlens.store import SiteInfo
from featlens.store.layout import chunk_rows

__all__ = ["ExtractionPlan", "Layout", "PlannedSite", "plan_extraction", "warn_of_size"]


@dataclass(frozen=True)
class Layout:
    """Sites of a feature file as the first forward pass shows them, and how rows go into blocks.

    Attributes
    ----------
    sites
        In order of execution.
    shapes
        Shape of each activation before reduction, without the batch axis.
    rows
        Samples in all.
    block
        Rows a chunk of the file.
    span
        Rows that are worked on and written together: whole blocks, at least a batch where that is larger.
    bytes
        Size of the features on the disk, before compression.
    """

    sites: tuple[SiteInfo, ...]
    shapes: tuple[tuple[int, ...], ...]
    rows: int
    block: int
    span: int
    bytes: int

    @classmethod
    def of(cls, runner: Runner) -> Layout:
        """Layout for the runner's request, after one forward pass of one sample."""
        request, rows = runner.request, len(runner.samples)
        kept = runner(request.sigmas[0], 0, 1)
        infos = tuple(
            _site_info(name, order, one, request.reducer_name)
            for order, (name, one) in enumerate(kept.items())
        )
        if request.halves and not any(name.endswith(f"@{request.halves[0]}") for name in kept):
            raise UsageError(
                f"extract: halves {', '.join(request.halves)} were named, but no site has as many rows; this "
                "model does not double its batch: leave halves out"
            )
        itemsize = np.dtype(request.dtype).itemsize
        widths = [info.width for info in infos if not info.same_as]
        block = chunk_rows(rows, widths, itemsize)
        return cls(
            sites=infos,
            shapes=tuple(one.shape[1:] for one in kept.values()),
            rows=rows,
            block=block,
            span=block * max(1, request.batch // block),
            bytes=sum(widths) * itemsize * rows * len(request.sigmas),
        )


def _site_info(name: str, order: int, kept: Kept, reducer: str) -> SiteInfo:
    channels, resolution = describe(kept.shape)
    width = int(kept.features.shape[1])
    return SiteInfo(name, order, width, channels, resolution, reducer, kind=kept.kind, same_as=kept.same_as)


@dataclass(frozen=True)
class PlannedSite:
    """One site of a plan: ``shape`` before reduction, ``width`` features kept, ``bytes`` on the disk."""

    name: str
    kind: str
    shape: tuple[int, ...]
    width: int
    bytes: int
    same_as: str = ""


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction would write, and the time it would take.

    Attributes
    ----------
    sites
        In order of execution.
    samples, sigmas, batch
        As asked for.
    bytes
        Size of the features in all.
    seconds_per_batch
        Time of one batch with everything but the disk, measured once after a pass to warm up.
    seconds
        Estimate for the whole extraction by one process.
    """

    sites: tuple[PlannedSite, ...]
    samples: int
    sigmas: tuple[float, ...]
    batch: int
    bytes: int
    seconds_per_batch: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON takes it."""
        return asdict(self)

    def __str__(self) -> str:
        """A table of the sites and two lines of totals."""
        rows = [("site", "class", "shape", "features", "bytes")]
        for site in self.sites:
            size = f"same as {site.same_as}" if site.same_as else human_bytes(site.bytes)
            rows.append((site.name, site.kind, "x".join(map(str, site.shape)), str(site.width), size))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = [[f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows]
        return "\n".join(
            [
                *("  ".join(row).rstrip() for row in cells),
                "",
                f"{len(self.sites)} sites x {len(self.sigmas)} sigmas x {self.samples:,} samples: "
                f"{human_bytes(self.bytes)}",
                f"{self.seconds_per_batch:.3g} s a batch of {self.batch}: about {_duration(self.seconds)} "
                "with one process",
            ]
        )


def plan_extraction(
    model: Denoiser,
    samples: SampleSet,
    sigmas: Sequence[float] | None = None,
    sites: Selection | None = None,
    reduce: str | Reducer = "gap",
    batch: int = 128,
    device: str | None = None,
    *,
    inputs: str = "noised",
    labels: str = "given",
    halves: Sequence[str] = (),
    dtype: str = "float32",
    precision: str | None = None,
) -> ExtractionPlan:
    """Sites, shapes, bytes and time of an extraction; parameters as of :func:`featlens.extract`.

    Runs the model three times: on one sample, and twice on one batch.
    """
    request = Request.checked(
        model, samples, sigmas, sites, reduce, batch, halves,
        inputs=inputs, labels=labels, dtype=dtype, precision=precision,
    )  # fmt: skip
    place(model, device)
    with running(model, samples, request) as runner:
        layout = Layout.of(runner)
        size = min(batch, len(samples))
        seconds = min(_timed(runner, layout, size) for _ in range(2))
    bytes_a_feature = np.dtype(dtype).itemsize * len(samples) * len(request.sigmas)
    planned = tuple(
        PlannedSite(
            site.name,
            site.kind,
            shape,
            site.width,
            0 if site.same_as else site.width * bytes_a_feature,
            site.same_as,
        )
        for site, shape in zip(layout.sites, layout.shapes, strict=True)
    )
    passes = -(-len(samples) // size) * len(request.sigmas)
    return ExtractionPlan(
        planned, len(samples), request.sigmas, size, layout.bytes, seconds, seconds * passes
    )


def _timed(runner: Runner, layout: Layout, size: int) -> float:
    start = time.perf_counter()
    names = [site.name for site in layout.sites if not site.same_as]
    runner.batch(runner.request.sigmas[0], 0, size, names).arrays()
    return time.perf_counter() - start


def place(model: Denoiser, device: str | None) -> None:
    """Move a model to a device, if one is named."""
    if device is not None:
        (model if isinstance(model, nn.Module) else model.network).to(device)


def warn_of_size(layout: Layout, most: float | None, out: os.PathLike[str] | str) -> None:
    """Warn if the file will be larger than ``most`` bytes."""
    if most is not None and layout.bytes > most:
        warnings.warn(
            f"{out} will hold {human_bytes(layout.bytes)} of features, more than {human_bytes(most)}; "
            "choose fewer sites or a smaller reduction, or raise the limit (warn_bytes, --warn-size)",
            FeatlensWarning,
            stacklevel=3,
        )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
