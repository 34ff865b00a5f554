"""Best of k: of k candidates the one that the ratio network finds most like data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from featlens.errors import FeatlensError, UsageError
from featlens.seeds import derive, sample_noise
from featlens_trainers.sampler import latents
from featlens_trainers.settings import BestOfConfig
from featlens_trainers.snapshots import load_ratio

__all__ = ["Ranker", "best_of", "candidate_latents", "draw_labels", "load_ranker", "ratio_path"]

Sampler = Callable[[Tensor, Tensor | None], Tensor]
"""From latents (B, C, H, W) and labels (B,) or None to images."""


Rank = Callable[[Tensor, Sequence[int], Tensor | None], Tensor]
"""From images, their numbers and labels to scores (B,), such as a :class:`Ranker`."""


class Ratio(Protocol):
    """What ranks images: :class:`featlens_trainers.RatioNetwork`, or anything that is called like it."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised images, (B,) sigma, (B,) labels -> (B,) logits."""


class Ranker:
    """Scores images by the mean logit of a ratio network at the configured noise levels.

    The network has only ever seen noised images, so images are noised for it. The noise of image i depends on
    the seed, i and sigma alone: all candidates of one image are compared under the same noise.
    """

    def __init__(self, ratio: Ratio, config: BestOfConfig, seed: int) -> None:
        self.ratio, self.config, self.seed = ratio, config, derive(seed, "best of")

    @torch.no_grad()
    def __call__(self, images: Tensor, ids: Sequence[int], labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) images with their numbers and labels -> scores (B,) on the CPU.

        Raises
        ------
        FeatlensError
            A score is not finite; names the image.
        """
        total = torch.zeros(len(images), dtype=torch.float64)
        for sigma in self.config.sigmas:
            noise = torch.from_numpy(sample_noise(self.seed, ids, sigma, tuple(images.shape[1:])))
            noised = images + sigma * noise.to(images.device)
            total += self.ratio(noised, images.new_full((len(images),), sigma), labels).double().cpu()
        scores = total / len(self.config.sigmas)
        if not torch.isfinite(scores).all():
            row = int((~torch.isfinite(scores)).nonzero()[0])
            raise FeatlensError(
                f"the ratio network's logit of image {ids[row]} is not finite; use an earlier snapshot"
            )
        return scores


def candidate_latents(seed: int, first: int, count: int, candidate: int, shape: tuple[int, ...]) -> Tensor:
    """Latents of one candidate of images ``first .. first + count - 1``; candidate 0 has the plain ones.

    Candidate c of image i depends on (seed, i, c) alone, so the best of 8 is chosen from the candidates of
    the best of 4 and four more.
    """
    return latents(derive(seed, "candidate", candidate) if candidate else seed, first, count, shape)


def draw_labels(seed: int, first: int, count: int, classes: int) -> Tensor:
    """Class-balanced labels (count,) int64: every ``classes`` images in a row hold each class once.

    The label of image i depends on (seed, i, classes) alone.

    >>> sorted(draw_labels(0, 10, 10, 10).tolist()) == list(range(10))
    True
    """
    out = torch.empty(count, dtype=torch.int64)
    orders: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] = {}
    for row in range(count):
        block, place = divmod(first + row, classes)
        if block not in orders:
            orders[block] = np.random.default_rng(derive(seed, "labels", block)).permutation(classes)
        out[row] = int(orders[block][place])
    return out


@torch.no_grad()
def best_of(
    sampler: Sampler,
    rank: Rank,
    ks: Sequence[int],
    seed: int,
    first: int,
    count: int,
    shape: tuple[int, ...],
    labels: Tensor | None = None,
    device: str = "cpu",
) -> dict[int, Tensor]:
    """For each k the images (count, *shape) that rank highest among the first k candidates, on the CPU.

    Parameters
    ----------
    sampler
        Called as ``sampler(z, labels)``.
    rank
        Scores candidates; not called where no k is above 1.
    ks
        Numbers of candidates, each at least 1.
    seed, first, count
        Images ``first .. first + count - 1`` of the seed.
    shape
        (C, H, W).
    labels
        (count,) for conditional models.
    device
        Where the sampler computes.
    """
    if not ks or min(ks) < 1:
        raise UsageError(f"best of: expected numbers of candidates from 1, got {list(ks)}")
    ids = range(first, first + count)
    there = None if labels is None else labels.to(device)
    best: Tensor | None = None
    scores = torch.full((count,), -torch.inf, dtype=torch.float64)
    out: dict[int, Tensor] = {}
    for candidate in range(max(ks)):
        images = sampler(candidate_latents(seed, first, count, candidate, shape).to(device), there)
        if best is None:
            best = images.clone()
            if max(ks) > 1:
                scores = rank(images, ids, there)
        else:
            found = rank(images, ids, there)
            better = found > scores
            scores = torch.where(better, found, scores)
            best[better.to(best.device)] = images[better.to(images.device)]
        if candidate + 1 in ks:
            out[candidate + 1] = best.clone().float().cpu()
    return out


def ratio_path(snapshot: Path) -> Path:
    """Where the ratio network of a snapshot lies; an error where there is none."""
    path = snapshot.parent / "ratio.safetensors"
    if not path.is_file():
        raise FeatlensError(
            f"{snapshot.parent} holds no ratio network (ratio.safetensors), so nothing can rank candidates; "
            "give a student that was distilled with direction 'ratio' by this version, or leave out --best-of"
        )
    return path


def load_ranker(snapshot: Path, config: BestOfConfig, seed: int, device: str = "cpu") -> Ranker:
    """Ranker from the ratio network beside a snapshot."""
    ratio, _ = load_ratio(ratio_path(snapshot), device)
    return Ranker(ratio, config, seed)
