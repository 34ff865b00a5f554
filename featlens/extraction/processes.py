"""Several processes with one output: who we are, and waiting for one another.

``torchrun``, ``accelerate launch`` and a host project's own process group are understood. Only the processor
and one small flag a process are used for it: features never go over the network.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from featlens.errors import FeatlensError, UsageError

__all__ = ["Processes"]

PATIENCE = datetime.timedelta(days=7)
"""How long a process that is done waits for the slowest one."""


@dataclass(frozen=True)
class Processes:
    """Which process this is among those that extract together.

    Attributes
    ----------
    index, count
        Rank of this process, and how many there are.
    """

    index: int = 0
    count: int = 1
    _group: Any = None

    @classmethod
    @contextlib.contextmanager
    def joined(cls) -> Iterator[Processes]:
        """The processes of the present process group, or of torchrun's variables; one if there are none."""
        started = distributed.is_available() and distributed.is_initialized()
        if not started and int(os.environ.get("WORLD_SIZE", "1")) < 2:
            yield cls()
            return
        if not started:
            if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
                raise UsageError(
                    f"WORLD_SIZE is set, but {', '.join(missing)} is not; start with torchrun or "
                    "accelerate launch, or unset WORLD_SIZE"
                )
            distributed.init_process_group("gloo", timeout=PATIENCE)
        group = distributed.new_group(backend="gloo", timeout=PATIENCE)
        try:
            yield cls(distributed.get_rank(), distributed.get_world_size(), group)
        finally:
            if not started:
                distributed.destroy_process_group()

    def settle(self, error: Exception | None = None) -> None:
        """Wait for all others; raises ``error``, or says which other processes failed."""
        flags = torch.zeros(self.count)
        flags[self.index] = error is not None
        if self.count > 1:
            try:
                distributed.all_reduce(flags, group=self._group)
            except RuntimeError as lost:
                raise error or FeatlensError(
                    "another process has ended without finishing its share; run the same command again to "
                    f"continue ({' '.join(str(lost).split())[:80]})"
                ) from lost
        if error is not None:
            raise error
        if failed := [rank for rank, flag in enumerate(flags.tolist()) if flag]:
            raise FeatlensError(
                f"process {failed[0]} of {self.count} failed and says why itself; run the same command again "
                "to continue"
            )
