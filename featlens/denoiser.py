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

from featlens.errors import FeatlensError, UsageError

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
    """(B,) int64 -> (B, num_labels) float32; None for unconditional models.

    Rows of images without a label, -1, are zeros; all rows are where ``labels`` is None.

    Raises
    ------
    UsageError
        A label on the CPU is outside of -1 .. num_labels - 1.

    Examples
    --------
    >>> one_hot(torch.tensor([1, -1]), 2, 2, torch.device("cpu")).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    if not num_labels:
        return None
    if labels is None:
        return torch.zeros(batch, num_labels, device=device)
    if labels.device.type == "cpu" and labels.numel() and not torch.compiler.is_compiling():
        low, high = int(labels.min()), int(labels.max())
        if low < -1 or high >= num_labels:
            raise UsageError(
                f"expected labels 0 to {num_labels - 1}, or -1 for none, got {low if low < -1 else high}; "
                "map the labels of the data to these"
            )
    labels = labels.to(device).long()
    # Comparing, and not indexing, keeps this free of branches on values.
    return (labels[:, None] == torch.arange(num_labels, device=device)).float()


def _wide(x: Tensor) -> Tensor:
    """``x`` in float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _result_type(x: Tensor) -> torch.dtype:
    """Type of x; of half precision under autocast, which chooses the types of layers itself, float32."""
    return _wide(x[:0]).dtype if torch.is_autocast_enabled(x.device.type) else x.dtype


@dataclass(frozen=True)
class Preconditioning:
    """Scalings of EDM (arXiv 2206.00364, table 1, last column), each (B,) -> (B,)."""

    sigma_data: float = 0.5

    def inputs(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What a raw network is given: (B, ...) ``c_in x`` and (B,) ``c_noise``, in the type of x.

        Half precision is scaled in float32; under autocast both stay in float32.
        """
        wide, result = _wide(x), _result_type(x)
        sigma = sigma.to(wide.dtype)
        return (column(self.c_in(sigma), wide) * wide).to(result), self.c_noise(sigma).to(result)

    def estimate(self, x: Tensor, sigma: Tensor, raw: Tensor) -> Tensor:
        """Estimate of x0 from the raw network's output, (B, ...), of x's type; float32 under autocast."""
        wide = _wide(x)
        sigma = sigma.to(wide.dtype)
        out = column(self.c_skip(sigma), wide) * wide + column(self.c_out(sigma), wide) * raw
        return out.to(_result_type(x))

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

    The scalings are computed in float32 or better, under autocast too, where the estimate is float32.

    Parameters
    ----------
    network
        Raw network F, called as ``network(x, c_noise, labels)`` with one-hot labels, and with augmentation
        labels as a fourth argument where they are given.
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

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Estimate of x0, (B, C, H, W), from noised images (B, C, H, W) at (B,) sigma.

        ``labels`` are (B,) int64, -1 for none; ``augment_labels`` (B, A) say how images were augmented.
        """
        scaled, c_noise = self.scaling.inputs(x, sigma)
        given = [scaled, c_noise, one_hot(labels, self.num_labels, len(x), x.device)]
        if augment_labels is not None:
            given.append(augment_labels)
        return self.scaling.estimate(x, sigma, self.network(*given))


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
