"""Randomness that depends on names and numbers alone, never on batch size, worker count or history."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["derive", "sample_noise"]


def derive(*parts: int | float | str) -> int:
    """63-bit seed that is a pure function of ``parts``.

    >>> derive(0, "teacher", 64) == derive(0, "teacher", 64) != derive(0, "teacher", 128)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part!r}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sample_noise(
    seed: int, ids: Sequence[int] | NDArray[Any], sigma: float, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Standard normal noise of each sample, (len(ids), *shape) float32.

    Row ``i`` depends only on (seed, ids[i], sigma): whatever the batch size, the order or the number of
    devices, sample 17 at sigma 0.5 always gets the same noise.
    """
    out = np.empty((len(ids), *shape), dtype=np.float32)
    for row, sample in enumerate(ids):
        bits = np.random.Philox(key=derive(int(seed), int(sample), float(sigma)))
        out[row] = np.random.Generator(bits).standard_normal(shape, dtype=np.float32)
    return out
