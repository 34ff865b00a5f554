"""The state of a training loop, and what its generators yield."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError
from featlens.seeds import derive
from featlens_trainers.ema import Profile, ema_update

__all__ = ["Step", "Training", "TrainingError", "seeded", "stream"]


class TrainingError(FeatlensError):
    """Training cannot go on: a loss or a weight is not finite."""


@dataclass(frozen=True)
class Step:
    """What one update did: images seen after it, and its scalars by name."""

    images: int
    metrics: Mapping[str, float]


def stream(seed: int, *names: int | float | str) -> torch.Generator:
    """CPU generator whose numbers depend on (seed, names) alone.

    Loops make one for every step, so a resumed run draws what the uninterrupted one would have drawn.
    """
    return torch.Generator().manual_seed(derive(seed, *names))


@contextlib.contextmanager
def seeded(seed: int, *names: int | str) -> Iterator[None]:
    """Context in which torch's global generator is seeded, and is as before afterwards.

    Layers draw from the global generator: initial weights, and dropout at every step.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive(seed, *names))
        yield


@dataclass(frozen=True)
class Average:
    """An averaged network: which network it follows, and with which profile."""

    of: str
    profile: Profile


@dataclass
class Training:
    """All that a loop changes: save it, load it, and the loop goes on as if nothing had happened.

    Attributes
    ----------
    networks
        Live and averaged networks by name, such as ``{"net": ..., "ema": ...}``.
    averages
        Which networks are averages, of which, and how: ``{"ema": Average("net", HalfLife(...))}``.
    optimizers
        By name; parameters are stored under the names that ``networks`` gives them.
    images
        Images seen so far.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    averages: dict[str, Average] = field(default_factory=dict)
    images: int = 0
    last_batch: int = field(default=1, init=False)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under a stable name."""
        out: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            out |= {f"net/{name}/{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for parameter, key in self._parameter_names(optimizer):
                for entry, value in optimizer.state.get(parameter, {}).items():
                    out[f"opt/{name}/{key}/{entry}"] = torch.as_tensor(value)
        return out

    def load_tensors(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Take over a state of :meth:`tensors`; names and shapes must agree, else nothing is changed."""
        own = {name: tensor for name, tensor in self.tensors().items() if name.startswith("net/")}
        there = {name: tensor for name, tensor in tensors.items() if name.startswith("net/")}
        wrong = [name for name in own if name not in there or there[name].shape != own[name].shape]
        wrong += [name for name in there if name not in own]
        if wrong:
            raise FeatlensError(
                f"the state is of another network: {len(wrong)} tensors differ, first {wrong[0]!r}"
            )
        for name, network in self.networks.items():
            prefix = f"net/{name}/"
            network.load_state_dict(
                {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            )
        for name, optimizer in self.optimizers.items():
            for parameter, key in self._parameter_names(optimizer):
                prefix = f"opt/{name}/{key}/"
                entries = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                places = {"step": _state_device(optimizer, parameter)}
                optimizer.state[parameter] = {
                    entry: value.to(places.get(entry, parameter.device), copy=True)
                    for entry, value in entries.items()
                }
        self.images = images

    def _parameter_names(self, optimizer: torch.optim.Optimizer) -> list[tuple[nn.Parameter, str]]:
        known = {
            id(parameter): f"{name}/{key}"
            for name, network in self.networks.items()
            for key, parameter in network.named_parameters()
        }
        return [(p, known[id(p)]) for group in optimizer.param_groups for p in group["params"]]

    def count(self, batch: int) -> None:
        """Count the images of one step."""
        self.images += batch
        self.last_batch = batch

    def advance(self, batch: int) -> None:
        """Count the images of one step and move each average towards its network."""
        self.count(batch)
        for name, average in self.averages.items():
            decay = average.profile.decay(self.images, batch)
            ema_update(self.networks[name], self.networks[average.of], decay)


def _state_device(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.device:
    """Where an optimiser keeps its step counter: beside the parameter if it is fused, else on the CPU."""
    beside = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    return parameter.device if beside else torch.device("cpu")


def learning_rate(images: int, lr: float, ramp_images: int, total: int | None = None) -> float:
    """Linear rise over ``ramp_images``, then constant, or a half cosine to zero at ``total`` images.

    >>> learning_rate(50, 1.0, 100), learning_rate(200, 1.0, 100)
    (0.5, 1.0)
    >>> round(learning_rate(550, 1.0, 100, total=1000), 6)
    0.5
    """
    if images < ramp_images:
        return lr * images / ramp_images
    if total is None or total <= ramp_images:
        return lr
    progress = min(1.0, (images - ramp_images) / (total - ramp_images))
    return lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def finite(value: Tensor, what: str, images: int, advice: str = "lower the learning rate") -> float:
    """``value`` as a float, or a :class:`TrainingError` that says where training broke."""
    number = float(value)
    if not math.isfinite(number):
        raise TrainingError(
            f"{what} became {number} after {images:,} images; {advice}; the last saved state is kept"
        )
    return number


def optimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step on ``loss``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
