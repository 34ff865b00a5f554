"""Which images come in which batch: a pure function of the images seen, so a resumed run goes on."""

from __future__ import annotations

import torch
from torch import Tensor

from featlens_trainers.training import stream

__all__ = ["Batches"]


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
    """

    def __init__(self, rows: int, batch: int, seed: int) -> None:
        self.rows, self.batch, self.seed = rows, batch, seed
        self._epochs: dict[int, Tensor] = {}

    def __call__(self, images: int) -> Tensor:
        """Row numbers (batch,) int64 of the batch that starts after ``images`` images."""
        where = torch.arange(images, images + self.batch)
        epochs = where // self.rows
        wanted = torch.unique(epochs).tolist()
        self._epochs = {epoch: order for epoch, order in self._epochs.items() if epoch in wanted}
        for epoch in wanted:
            if epoch not in self._epochs:
                self._epochs[epoch] = torch.randperm(self.rows, generator=stream(self.seed, "epoch", epoch))
        return torch.cat([self._epochs[epoch][where[epochs == epoch] % self.rows] for epoch in wanted])
