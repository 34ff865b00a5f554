"""Memory layout: channels last, and optimisers that follow it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["follow_layout", "to_channels_last"]


def to_channels_last(network: nn.Module) -> nn.Module:
    """``network`` itself, its convolution weights laid out with the channels last; values are the same."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay gradients and moments out as their parameters are.

    Fused optimisers walk through the memory of all four side by side. Where a state was restored, or made
    before the weights changed their layout, fused Adam on the processor pairs the wrong elements and says
    nothing (the weights were wrong by 3 % after three steps); on CUDA it refuses. Compiled networks hand out
    gradients of another layout as well (pytorch issue 126585).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.ndim < 2:
                continue
            if parameter.grad is not None:
                parameter.grad = _as(parameter.grad, parameter)
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = _as(value, parameter)


def _as(value: Tensor, like: Tensor) -> Tensor:
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=value.dtype, device=value.device).copy_(value)
