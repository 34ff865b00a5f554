"""Anything that makes images, as one sampler: a run, a snapshot, or any model that featlens loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featlens.denoiser import Denoiser, weights_digest
from featlens.errors import UsageError
from featlens_trainers.evaluation.best_of import Ranker, Sampler, best_of, draw_labels, load_ranker
from featlens_trainers.runs import newest_snapshot, read_run
from featlens_trainers.sampler import OneStepGenerator, heun_sample
from featlens_trainers.settings import BestOfConfig
from featlens_trainers.snapshots import load_denoiser

__all__ = ["Generator", "open_model"]


@dataclass(frozen=True)
class Generator:
    """A model with the way it is sampled.

    Attributes
    ----------
    name
        What the user wrote.
    sampler
        Called as ``sampler(z, labels)``.
    shape
        (C, H, W) of its images.
    num_labels
        Number of classes, 0 if unconditional.
    evaluations
        Network evaluations an image, of one candidate.
    steps
        Heun steps, 1 for the one-step map.
    sigma_init
        Noise level of the one-step map.
    weights
        Digest of the weights.
    device
        Where it computes.
    snapshot
        Its file, where it is one of ours.
    study
        Folder of the study that its run lies in.
    ranker
        What chooses among candidates.
    label
        The one class to draw, None for all in equal numbers.
    """

    name: str
    sampler: Sampler
    shape: tuple[int, ...]
    num_labels: int
    evaluations: int
    steps: int
    sigma_init: float | None
    weights: str
    device: str
    snapshot: Path | None = None
    study: Path | None = None
    ranker: Ranker | None = None
    label: int | None = None

    def choosing(self, config: BestOfConfig, seed: int) -> Generator:
        """The same generator, with its own ratio network as the judge of candidates."""
        if self.snapshot is None:
            raise UsageError(
                f"{self.name}: only runs of featlens have a ratio network that can rank candidates; "
                "leave out --best-of"
            )
        return replace(self, ranker=load_ranker(self.snapshot, config, seed, self.device))

    def drawing(self, label: int | None) -> Generator:
        """The same generator, drawing one class alone; all classes in equal numbers if None."""
        if label is not None and not 0 <= label < self.num_labels:
            known = f"0 to {self.num_labels - 1}" if self.num_labels else "none, it is unconditional"
            raise UsageError(f"--label {label}: {self.name} knows the labels {known}")
        return replace(self, label=label)

    def labels(self, seed: int, first: int, count: int) -> Tensor | None:
        """Labels (count,) of images, None for unconditional models."""
        if not self.num_labels:
            return None
        if self.label is not None:
            return torch.full((count,), self.label, dtype=torch.int64)
        return draw_labels(seed, first, count, self.num_labels)

    def batches(
        self, n: int, seed: int, ks: Sequence[int] = (1,), batch: int = 250
    ) -> Iterator[tuple[int, dict[int, Tensor]]]:
        """Number of the first image of each batch, and its images (B, C, H, W) by number of candidates.

        Image i of k candidates depends on (seed, i, k) alone.
        """
        rank = self.ranker or _no_ranker
        for first in range(0, n, batch):
            count = min(batch, n - first)
            labels = self.labels(seed, first, count)
            yield first, best_of(self.sampler, rank, ks, seed, first, count, self.shape, labels, self.device)


def _no_ranker(*_: Any) -> Tensor:
    raise UsageError("best of: more than one candidate needs a ratio network; call choosing() first")


def open_model(
    location: str | Path, steps: int = 18, device: str = "cpu", sigma_init: float | None = None
) -> Generator:
    """Generator behind a location.

    Parameters
    ----------
    location
        Folder of a run, one of its snapshots, or anything else that :func:`featlens.load` takes.
    steps
        Heun steps of a denoiser; 1 for its one-step map. Students and controls always take one.
    device
        Where it computes.
    sigma_init
        Noise level of the one-step map of a model that does not know its own.
    """
    text = str(location)
    found = _snapshot(Path(text))
    if found is None:
        return _foreign(text, steps, device, sigma_init)
    snapshot, run = found
    denoiser, about = load_denoiser(snapshot, device)
    record = read_run(run) if run is not None else None
    one = steps == 1 or (record is not None and record["kind"] != "teacher")
    level = float(about["sigma_init"]) if sigma_init is None and "sigma_init" in about else sigma_init
    generator = _generator(text, denoiser, 1 if one else steps, device, level)
    return replace(generator, snapshot=snapshot, study=None if run is None else run.resolve().parent)


def _snapshot(path: Path) -> tuple[Path, Path | None] | None:
    """File of a snapshot of ours and the folder of its run, or None if the path is neither."""
    if (path / "run.json").exists():
        read_run(path)
        return newest_snapshot(path), path
    file = path / "ema.safetensors" if path.is_dir() else path
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    run = file.absolute().parent.parent.parent
    return file, run if (run / "run.json").exists() else None


def _foreign(text: str, steps: int, device: str, sigma_init: float | None) -> Generator:
    from featlens.adapters import load

    try:
        denoiser = load(text, device)
    except UsageError as error:
        if ":" in text:
            raise
        raise UsageError(
            f"{text} is not a run (no run.json); give the folder of a teacher or student, or another model "
            f"({error})"
        ) from None
    level = getattr(denoiser, "sigma_init", None) if sigma_init is None else sigma_init
    return _generator(text, denoiser, steps, device, level)


def _generator(text: str, denoiser: Denoiser, steps: int, device: str, sigma_init: float | None) -> Generator:
    sampler: Sampler
    if steps == 1:
        if sigma_init is None:
            raise UsageError(
                f"{text}: its one-step map starts from a noise level that it does not name; give --sigma-init"
            )
        sampler = OneStepGenerator(denoiser, float(sigma_init)).eval()  # type: ignore[arg-type]
    else:
        sampler = lambda z, labels: heun_sample(denoiser, z, labels, steps=steps)  # type: ignore[arg-type]  # noqa: E731
    shape = tuple(denoiser.sample_shape)
    if len(shape) != 3:
        raise UsageError(f"{text} makes samples of shape {shape}; expected images (channels, height, width)")
    return Generator(
        name=text,
        sampler=sampler,
        shape=shape,
        num_labels=denoiser.num_labels,
        evaluations=1 if steps == 1 else 2 * steps - 1,
        steps=steps,
        sigma_init=None if sigma_init is None else float(sigma_init),
        weights=weights_digest(denoiser if isinstance(denoiser, torch.nn.Module) else denoiser.network),
        device=device,
    )
