"""Several processes that train one network: who we are, and what they agree on.

``torchrun``, ``accelerate launch`` and a host project's own process group are understood. Gradients are
averaged here and not by DistributedDataParallel: see docs/decisions/0008-engine.md.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed, nn

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.engine.devices import find_device

__all__ = ["Processes"]

PATIENCE = datetime.timedelta(days=7)
"""How long the others wait in :meth:`Processes.wait` while the main process evaluates or writes."""
TIMEOUT = datetime.timedelta(hours=2)
"""How long they wait for one another at a gradient, and at the start."""
BUCKET = 2**23
"""Numbers that go over the network at once (32 MiB in float32)."""
SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Processes:
    """Which process this is among those that train together.

    Attributes
    ----------
    rank, world
        Number of this process, and how many there are.
    device
        Where tensors must be to go over the network.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _patient: Any = None

    @classmethod
    def join(cls, name: str | torch.device) -> Processes:
        """The processes that a launcher started, with this one's device; alone if there was no launcher."""
        if distributed.is_available() and distributed.is_initialized():
            local = _local_rank() if distributed.get_world_size() > 1 else None
            return cls._joined(find_device(name, local))
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls(device=find_device(name))
        if missing := [variable for variable in VARIABLES if variable not in os.environ]:
            raise UsageError(
                f"WORLD_SIZE is set, but {', '.join(missing)} is not; start with torchrun or "
                "accelerate launch, or unset WORLD_SIZE"
            )
        if other := [kind for kind in SHARDED if _is_set(f"ACCELERATE_USE_{kind}")]:
            raise UsageError(
                f"accelerate launch was told to use {other[0]}; every process of featlens holds the whole "
                "network: launch with --multi_gpu"
            )
        device = find_device(name, _local_rank())
        from accelerate import PartialState  # type: ignore[import-untyped]

        with warnings.catch_warnings():
            # It says how many threads it chose; --threads and run.json do as well.
            warnings.simplefilter("ignore")
            PartialState(cpu=device.type == "cpu", timeout=TIMEOUT)
        if not distributed.is_initialized():
            raise FeatlensError(
                f"accelerate started no process group on {device}; use --device cpu or --device cuda"
            )
        # At the end of the process and not of an engine: a second group in one process waits for ever on
        # what the launcher's store remembers of the first.
        atexit.register(_leave)
        return cls._joined(device)

    @classmethod
    def _joined(cls, device: torch.device) -> Processes:
        return cls(
            distributed.get_rank(), distributed.get_world_size(), device, _patient(distributed.group.WORLD)
        )

    def average(self, parameters: Sequence[nn.Parameter], parts: int) -> None:
        """Divide summed gradients by ``parts`` and average them over the processes, in place.

        A parameter that has a gradient on some processes only counts as zero on the others.
        """
        if self.world == 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if parts > 1 and gradients:
                torch._foreach_mul_(gradients, 1 / parts)
            return
        with _connected():
            for parameter in self._fill_missing(parameters):
                parameter.grad = torch.zeros_like(parameter)
            pending = None
            for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                work = distributed.all_reduce(flat, async_op=True)
                if pending is not None:
                    _finish(*pending, parts * self.world)
                pending = (work, flat, bucket)
            if pending is not None:
                _finish(*pending, parts * self.world)

    def _fill_missing(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Parameters without a gradient here that have one elsewhere."""
        here = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        anywhere = here.clone()
        distributed.all_reduce(anywhere, distributed.ReduceOp.MAX, group=self._patient)
        missing = (anywhere & ~here.bool()).tolist()
        return [parameter for parameter, flag in zip(parameters, missing, strict=True) if flag]

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a tensor over the processes."""
        if self.world == 1:
            return value
        held = value.detach().to(self.device, copy=True)
        with _connected():
            distributed.all_reduce(held)
        return (held / self.world).to(value.device)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process."""
        if self.world == 1:
            return flag
        held = torch.tensor([flag], dtype=torch.uint8)
        with _connected():
            distributed.all_reduce(held, distributed.ReduceOp.MAX, group=self._patient)
        return bool(held)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            with _connected():
                distributed.barrier(group=self._patient)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors by those of the main process, which must have as many of the same shapes."""
        if self.world == 1:
            return
        with _connected(), torch.no_grad():
            for tensor in tensors:
                held = tensor.detach().to(self.device).contiguous()
                distributed.broadcast(held, src=0)
                tensor.copy_(held)

    def tell(self, value: Any) -> Any:
        """``value`` of the main process, on all; anything that JSON can hold."""
        if self.world == 1:
            return value
        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        with _connected():
            length = torch.tensor([len(text)])
            distributed.broadcast(length, src=0, group=self._patient)
            held = text if self.rank == 0 else torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(held, src=0, group=self._patient)
        return json.loads(bytes(held.tolist()))


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in groups of at most :data:`BUCKET` numbers and one type, in order."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _finish(work: Any, flat: Tensor, bucket: Sequence[Tensor], many: int) -> None:
    """Wait for one bucket and put its mean back into the gradients."""
    work.wait()
    flat /= many
    pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
    for gradient, piece in zip(bucket, pieces, strict=True):
        gradient.copy_(piece.view(gradient.shape))


@contextlib.contextmanager
def _connected() -> Iterator[None]:
    """Context in which the loss of another process becomes an error of one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as lost:
        raise FeatlensError(
            "another process has ended, and says why itself; run the same command again to continue "
            f"({' '.join(str(lost).split())[:80]})"
        ) from lost


@functools.cache
def _patient(everyone: Any) -> Any:
    """A second group of all processes; once for all engines, since all must take part in making it."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
