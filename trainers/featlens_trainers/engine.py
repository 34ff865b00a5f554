"""Where and how a loop runs: device, precision, parts of a batch, processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

__all__ = ["Engine", "frozen"]


@contextlib.contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Context in which no parameter of ``modules`` receives a gradient; those in inputs still flow."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Engine:
    """Plain engine: one process, float32, the whole batch at once.

    A loop draws all randomness for the whole batch, so that what an image meets depends on the seed alone;
    each process then works on its own :meth:`parts` of the batch, one after the other.
    """

    main = True
    """Whether this process writes files and draws progress."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def parts(self, batch: int) -> list[slice]:
        """Parts of a batch that this process works on, equal in size, in order."""
        return [slice(0, batch)]

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which networks compute in the engine's precision."""
        return contextlib.nullcontext()

    def faster(self, network: nn.Module) -> nn.Module:
        """What to call instead of ``network``, of the same parameters: compiled where that was asked for."""
        return network

    def update(self, optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> None:
        """One optimiser step on the mean of ``losses``, one for each of this process's parts.

        ``losses`` is consumed lazily: the graph of a part is freed before the next is built.
        """
        optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a scalar over the processes."""
        return value
