"""What featlens calls a denoiser, and EDM's preconditioning around a raw network.

Coordinates (arXiv 2206.00364): a noised image is ``x = x0 + sigma * eps`` with ``eps ~ N(0, I)``; ``sigma``
of shape (B,) is the standard deviation of the noise in units of the data; a denoiser returns an estimate of
``x0``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from featlens.errors import FeatlensError

__all__ = [
    "Denoiser",
    "EDMDenoiser",
    "Preconditioning",
    "column",
    "one_hot",
    "tensor_digests",
    "weights_digest",
]


@runtime_checkable
class Denoiser(Protocol):
    """Anything that estimates the clean image; a host project's class satisfies it by shape alone.

    Attributes
    ----------
    sample_shape
        (C, H, W), or the shape of whatever one sample is.
    num_labels
        Number of classes, 0 for an unconditional model.
    sigma_data
        Standard deviation of the data that the model was made for.
    network
        The module in which sites are looked up.
    """

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def num_labels(self) -> int:
        """Number of classes, 0 if unconditional."""

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data."""

    @property
    def network(self) -> nn.Module:
        """Module that holds the sites."""

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, *sample_shape), (B,), (B,) int64 -> estimate of x0, (B, *sample_shape)."""


def column(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,) so that it broadcasts against (B, ...)."""
    return sigma.reshape(-1, *([1] * (like.ndim - 1)))


def one_hot(labels: Tensor | None, num_labels: int, batch: int, device: torch.device) -> Tensor | None:
    """(B,) int64 -> (B, num_labels) float32; zeros where labels are absent; None for unconditional models."""
    if not num_labels:
        return None
    if labels is None:
        return torch.zeros(batch, num_labels, device=device)
    hot: Tensor = nn.functional.one_hot(labels.to(device).long(), num_labels).float()
    return hot


@dataclass(frozen=True)
class Preconditioning:
    """Scalings of EDM (arXiv 2206.00364, table 1, last column), each (B,) -> (B,)."""

    sigma_data: float = 0.5

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Weight of the noised image in the output."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Weight of the network in the output."""
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of the network's input; makes its variance one."""
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told about the noise level."""
        return sigma.log() / 4

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error, 1 / c_out^2."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class EDMDenoiser(nn.Module):
    """Denoiser ``D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)`` (arXiv 2206.00364, equation 7).

    Parameters
    ----------
    network
        Raw network F, called as ``network(x, c_noise, labels)`` with one-hot labels.
    sample_shape, num_labels, sigma_data
        As in :class:`Denoiser`.
    """

    sigma_init: float | None = None
    """Noise level from which a one-step generator starts, where that is known."""

    def __init__(
        self, network: nn.Module, sample_shape: tuple[int, ...], num_labels: int = 0, sigma_data: float = 0.5
    ) -> None:
        super().__init__()
        self.network = network
        self.sample_shape = sample_shape
        self.num_labels = num_labels
        self.sigma_data = sigma_data
        self.scaling = Preconditioning(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, C, H, W) noised, (B,) sigma, (B,) labels -> (B, C, H, W) estimate of x0."""
        sigma = sigma.to(x.dtype)
        hot = one_hot(labels, self.num_labels, len(x), x.device)
        raw = self.network(column(self.scaling.c_in(sigma), x) * x, self.scaling.c_noise(sigma), hot)
        out: Tensor = column(self.scaling.c_skip(sigma), x) * x + column(self.scaling.c_out(sigma), x) * raw
        return out


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (first 16 hex digits) over names, shapes, dtypes and bytes of a module's state.

    At most 64 MB are copied to the CPU at a time. Equal weights have equal digests on every device, and
    behind ``torch.compile`` and ``DistributedDataParallel``.

    Raises
    ------
    FeatlensError
        A tensor has no bytes to read: it is on the meta device, sparse, quantised, of a lazy module that
        has not run, or something else than a tensor.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_state(module).items()):
        for part in _bytes_of(name, tensor):
            digest.update(part)
    return digest.hexdigest()[:16]


def tensor_digests(module: nn.Module) -> dict[str, str]:
    """As :func:`weights_digest`, for each tensor of a module's state by its name."""
    digests = {}
    for name, tensor in _state(module).items():
        digest = hashlib.sha256()
        for part in _bytes_of(name, tensor):
            digest.update(part)
        digests[name] = digest.hexdigest()[:16]
    return digests


_AT_ONCE = 2**26
_COMPILED = "_orig_mod"


def _state(module: nn.Module) -> dict[str, Tensor]:
    """State with the names that it has in the bare module."""
    while True:
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, _COMPILED, None), nn.Module):
            module = inner
        else:
            break
    # Parts of the module may be compiled by themselves.
    return {
        ".".join(part for part in name.split(".") if part != _COMPILED): tensor
        for name, tensor in module.state_dict().items()
    }


def _bytes_of(name: str, tensor: Tensor) -> Iterator[bytes | memoryview]:
    """What is digested of one tensor."""
    _require_bytes(name, tensor)
    yield f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode()
    for part in _parts(tensor.detach()):
        held = part.resolve_conj().resolve_neg()
        # A single value counts as contiguous with any stride, but only stride 1 can be seen as bytes.
        if held.stride(-1) != 1:
            held = held.clone(memory_format=torch.contiguous_format)
        yield held.view(torch.uint8).cpu().numpy().data


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The values in order, in flat pieces of few enough bytes."""
    size = max(1, _AT_ONCE // tensor.element_size())
    if tensor.numel() <= size or tensor.ndim < 2 or tensor.is_contiguous():
        yield from torch.split(tensor.reshape(-1), size)
        return
    # Flattening all of a strided tensor would copy it whole.
    for row in tensor:
        yield from _parts(row)


def _require_bytes(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        what, do = f"a {type(tensor).__name__}", "leave out extra state, or digest a module without it"
    elif isinstance(tensor, UninitializedBuffer | UninitializedParameter):
        what, do = "of a lazy module that has not run yet", "run the model once"
    elif tensor.is_meta:
        what, do = "on the meta device, without values", "load the weights"
    elif tensor.is_quantized or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        what, do = (
            f"a {type(tensor).__name__} of {tensor.dtype}, quantised or distributed",
            "load plain weights",
        )
    elif tensor.layout is not torch.strided:
        what, do = f"sparse ({tensor.layout})", "call to_dense() on it"
    else:
        return
    raise FeatlensError(
        f"the weights have no digest: expected dense tensors with values, {name!r} is {what}; {do}"
    )
