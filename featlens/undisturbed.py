"""Running somebody's model so that nothing is another afterwards: modes, gradients, random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["evaluating", "undisturbed"]


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule's own mode is restored afterwards."""
    modes = {child: child.training for module in modules for child in module.modules()}
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextlib.contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and a copy of the random state inside the block."""
    cuda = sorted({p.device.index for module in modules for p in module.parameters() if p.is_cuda})
    with evaluating(*modules), torch.random.fork_rng(devices=cuda), torch.no_grad():
        yield
