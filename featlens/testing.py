"""Public conformance test for denoisers: whether a class does what featlens will ask of it."""

from __future__ import annotations

import torch
from torch import Tensor

from featlens.denoiser import Denoiser
from featlens.errors import FeatlensError

__all__ = ["check_denoiser"]


def check_denoiser(denoiser: Denoiser, sigma: float = 0.5, batch: int = 3) -> None:
    """Raise :class:`featlens.FeatlensError` with the first thing that is wrong; return None if all is well.

    Checks the attributes, the shape and dtype of the output, that it is finite, that a sample's result does
    not depend on the others in its batch, and that a call leaves its input as it was.
    """
    for name in ("sample_shape", "num_labels", "sigma_data", "network"):
        if not hasattr(denoiser, name):
            raise FeatlensError(f"check_denoiser: {type(denoiser).__name__} has no attribute {name!r}")
    if not callable(denoiser):
        raise FeatlensError(f"check_denoiser: {type(denoiser).__name__} cannot be called; give it __call__")
    if not isinstance(denoiser.network, torch.nn.Module):
        raise FeatlensError(
            f"check_denoiser: network is a {type(denoiser.network).__name__}, expected an nn.Module"
        )
    first = next(denoiser.network.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    numbers = torch.Generator().manual_seed(0)
    x = (sigma * torch.randn((batch, *denoiser.sample_shape), generator=numbers)).to(device)
    before = x.clone()
    modes = {module: module.training for module in denoiser.network.modules()}
    denoiser.network.eval()
    try:
        with torch.no_grad():
            whole = _called(denoiser, x, sigma)
            single = _called(denoiser, x[:1], sigma)
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not torch.equal(x, before):
        raise FeatlensError("check_denoiser: the call changed its input in place; clone it first")
    if not torch.allclose(whole[:1], single, rtol=1e-3, atol=1e-4):
        gap = float((whole[:1] - single).abs().max())
        raise FeatlensError(
            f"check_denoiser: a sample's output depends on its batch (difference {gap:.2g}); use eval mode"
        )


def _called(denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.int64, device=x.device) if denoiser.num_labels else None
    out: object = denoiser(x, torch.full((len(x),), sigma, device=x.device), labels)
    if not isinstance(out, Tensor) or out.shape != x.shape:
        came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise FeatlensError(
            f"check_denoiser: expected an estimate of x0 of shape {tuple(x.shape)}, got {came}"
        )
    if not out.is_floating_point() or not bool(torch.isfinite(out).all()):
        raise FeatlensError(
            f"check_denoiser: the output at sigma {sigma:g} is not finite floating point ({out.dtype})"
        )
    return out
