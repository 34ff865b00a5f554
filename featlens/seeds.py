"""Randomness that depends on names and numbers alone, never on batch size, worker count or history."""

from __future__ import annotations

import hashlib
import math
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
    flat = out.reshape(len(out), math.prod(shape))
    # The key of a sample is derive(seed, sample, sigma). One generator is set to each key in turn, and the
    # text is put together once: for small images that is four times as fast as starting anew.
    before = hashlib.sha256(f"int:{int(seed)}\x1fint:".encode())
    after = f"\x1ffloat:{float(sigma)!r}"
    bits = np.random.Philox(key=0)
    generator = np.random.Generator(bits)
    fresh: Any = bits.state
    for row, sample in enumerate(ids):
        sha = before.copy()
        sha.update(f"{int(sample)}{after}".encode())
        fresh["state"]["key"][0] = int.from_bytes(sha.digest()[:8], "big") >> 1
        bits.state = fresh
        generator.standard_normal(dtype=np.float32, out=flat[row])
    return out
