"""Sparse random projection: the same on every device, without scattered additions.

Every one of the P numbers is added, with a random sign, to one bucket in each of a few blocks of buckets.
In a block the numbers are dealt out evenly, by a permutation: bucket sizes differ by one at most. Each bucket
is summed by itself, in place of scattered additions, whose order on a GPU is not fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featlens.seeds import derive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["BLOCKS", "block_sizes", "deal", "projection"]

BLOCKS = 4


def block_sizes(d: int) -> list[int]:
    """Buckets in each block, d in all, as even as can be.

    >>> block_sizes(10), block_sizes(2)
    ([3, 3, 2, 2], [1, 1])
    """
    blocks = min(BLOCKS, d)
    return [d // blocks + (block < d % blocks) for block in range(blocks)]


def deal(d: int, seed: int, count: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Order (count,) in which the numbers are dealt to the buckets of a block, and the sign (count,) of each.

    The k-th number of the order goes to bucket ``k % size``. Rests on raw bits of Philox, which NumPy never
    changes.
    """
    bits = np.random.Philox(key=derive("project", d, seed, count, block))
    order = np.argsort(bits.random_raw(count), kind="stable")
    signs = np.where(bits.random_raw(count) >> np.uint64(63), np.float32(1), np.float32(-1))
    return order, signs


def _bags(d: int, seed: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Members of the d buckets one bucket after the other, where each begins, and the signed weights."""
    members, lengths, weights = [], [], []
    for block, size in enumerate(block_sizes(d)):
        order, signs = deal(d, seed, count, block)
        for bucket in range(size):
            members.append(order[bucket::size])
            lengths.append(len(members[-1]))
            # A larger block estimates better: weighing by size keeps the variance bound for any d.
            weights.append(signs[bucket::size] * np.float32(math.sqrt(size / d)))
    return np.concatenate(members), np.cumsum([0, *lengths[:-1]]), np.concatenate(weights)


def projection(d: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Function (B, P) -> (B, d) for any P > d; float32, or float64 of float64. Extra memory O(B * P)."""
    made: dict[tuple[int, torch.device], list[Tensor]] = {}

    def bags(count: int, device: torch.device) -> list[Tensor]:
        import torch

        if (count, device) not in made:
            members, starts, weights = _bags(d, seed, count)
            kind = np.int32 if len(members) < 2**31 else np.int64
            # Normal tensors, even where the first use is in inference mode.
            with torch.inference_mode(False):
                arrays = (members.astype(kind), starts.astype(kind), weights)
                made[count, device] = [torch.from_numpy(array).to(device) for array in arrays]
        return made[count, device]

    def apply(x: Tensor) -> Tensor:
        import torch

        members, starts, weights = bags(x.shape[1], x.device)
        rows = x.t().to(torch.float64 if x.dtype == torch.float64 else torch.float32).contiguous()
        summed = torch.nn.functional.embedding_bag(
            members, rows, starts, mode="sum", per_sample_weights=weights.to(rows.dtype)
        )
        return summed.t().contiguous()

    return apply
