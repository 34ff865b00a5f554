"""Advice where a device runs out of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from featlens.errors import FeatlensError

if TYPE_CHECKING:
    from featlens_trainers.engine.running import Engine

__all__ = ["memory_advice"]

CPU_WORDS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def memory_advice(batch: int, engine: Engine) -> Iterator[None]:
    """Context in which running out of memory becomes an error that names what to change.

    >>> from featlens_trainers.engine import Engine, memory_advice
    >>> with memory_advice(64, Engine()):
    ...     raise torch.OutOfMemoryError("CUDA out of memory")
    Traceback (most recent call last):
    featlens.errors.FeatlensError: cpu ran out of memory with 64 images at once; give --accumulate 2 (32 at \
once, the same result), or --precision bfloat16, or a smaller network
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _advised(batch, engine) from error
    except RuntimeError as error:
        # torch raises no class of its own where the processor's memory is full.
        if any(words in str(error) for words in CPU_WORDS):
            raise _advised(batch, engine) from error
        raise


def _advised(batch: int, engine: Engine) -> FeatlensError:
    part = max(1, batch // (engine.accumulate * engine.world))
    ways = []
    finer = next((many for many in range(2, part + 1) if part % many == 0), None)
    if finer is not None:
        ways.append(f"--accumulate {engine.accumulate * finer} ({part // finer} at once, the same result)")
    if engine.precision == "float32":
        ways.append("--precision bfloat16")
    ways.append("a smaller network")
    return FeatlensError(
        f"{engine.device} ran out of memory with {part} image{'s' if part > 1 else ''} at once; give "
        f"{', or '.join(ways)}"
    )
