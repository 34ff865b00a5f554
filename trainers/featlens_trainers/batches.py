"""Which images come in which batch: a pure function of the images seen, so a resumed run goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers.training import stream

__all__ = ["Batches", "balanced_labels"]


class Batches:
    """Endless batches of row numbers; every image once per epoch; a pure function of the images seen.

    Parameters
    ----------
    rows
        Number of images.
    batch
        Rows a batch.
    seed
        Seed of the shuffles.
    labels
        (rows,) int64 labels, needed for balanced batches.
    balanced
        Every class equally often in a batch, where the batch is a multiple of their number; otherwise the
        counts in a batch differ by at most one and the classes take turns. Then every image comes once per
        epoch of its own class.
    """

    def __init__(
        self, rows: int, batch: int, seed: int, labels: Tensor | None = None, balanced: bool = False
    ) -> None:
        if rows < 1:
            raise UsageError("no image to train on: expected one or more, got 0; check data and split")
        if balanced and labels is None:
            raise UsageError("class-balanced batches need labels, and these images have none; drop balanced")
        self.rows, self.batch, self.seed = rows, batch, seed
        self._classes: list[Tensor] = []
        if balanced and labels is not None:
            if len(labels) != rows:
                raise UsageError(
                    f"class-balanced batches: expected a label for each image, got {len(labels)} labels "
                    f"for {rows} images"
                )
            held = labels.cpu()
            self._classes = [(held == label).nonzero()[:, 0] for label in torch.unique(held)]
        self._orders: dict[tuple[int, int], Tensor] = {}

    def __call__(self, images: int) -> Tensor:
        """Row numbers (batch,) int64 of the batch that starts after ``images`` images."""
        return self._balanced(images) if self._classes else self._shuffled(images)

    def _shuffled(self, images: int) -> Tensor:
        where = torch.arange(images, images + self.batch)
        return self._taken(where, 0, self.rows, {})

    def _balanced(self, images: int) -> Tensor:
        number = images // self.batch
        whole, rest = divmod(self.batch, len(self._classes))
        parts = []
        kept: dict[tuple[int, int], Tensor] = {}
        for index, rows in enumerate(self._classes):
            # The classes that come once more take turns: the n-th batch goes on where the one before ended.
            extra = [number * rest + j for j in range(rest)]
            before = number * whole + _visits(number * rest, index, len(self._classes))
            count = whole + sum(turn % len(self._classes) == index for turn in extra)
            where = torch.arange(before, before + count)
            parts.append(rows[self._taken(where, index + 1, len(rows), kept)])
        order = torch.randperm(self.batch, generator=stream(self.seed, "balanced", number))
        return torch.cat(parts)[order]

    def _taken(self, where: Tensor, group: int, size: int, kept: dict[tuple[int, int], Tensor]) -> Tensor:
        """Members of a group of ``size`` at places ``where`` of its endless sequence of shuffled epochs."""
        epochs = where // size
        out = torch.empty_like(where)
        for epoch in torch.unique(epochs).tolist():
            if (group, epoch) not in self._orders:
                names = ("epoch", epoch) if group == 0 else ("epoch", epoch, group)
                self._orders[group, epoch] = torch.randperm(size, generator=stream(self.seed, *names))
            kept[group, epoch] = self._orders[group, epoch]
            here = epochs == epoch
            out[here] = kept[group, epoch][where[here] % size]
        # Only the epochs at hand are held; of the other groups, what they last used.
        self._orders = {key: order for key, order in self._orders.items() if key[0] != group or key in kept}
        return out


def _visits(turns: int, index: int, classes: int) -> int:
    """How many of the turns 0 .. turns - 1 fall on class ``index`` when classes alternate."""
    return (turns + classes - 1 - index) // classes


def balanced_labels(batch: int, classes: int, generator: torch.Generator) -> Tensor:
    """(batch,) int64 labels, each class equally often (to within one, by lot), in random order.

    >>> balanced_labels(6, 3, torch.Generator().manual_seed(0)).bincount().tolist()
    [2, 2, 2]
    """
    order = torch.randperm(classes, generator=generator)
    labels = order[torch.arange(batch) % classes]
    return labels[torch.randperm(batch, generator=generator)]
