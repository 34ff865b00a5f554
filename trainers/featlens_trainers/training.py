"""The state of a training loop, and what its generators yield."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from featlens.errors import FeatlensError
from featlens.seeds import derive
from featlens_trainers.ema import Average, Follower

if TYPE_CHECKING:
    from featlens_trainers.data import ImageData
    from featlens_trainers.engine import Engine

__all__ = [
    "Average",
    "Step",
    "Training",
    "TrainingError",
    "finite",
    "learning_rate",
    "optimise",
    "seeded",
    "set_learning_rate",
    "stream",
    "update",
    "why_not_finite",
]

NOTES = "notes"
"""Name under which a state holds its notes, as the bytes of their JSON."""


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
    notes
        What a loop keeps beside its networks, such as counters: anything that JSON holds. Saved with the
        state and restored with it.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    averages: dict[str, Average] = field(default_factory=dict)
    images: int = 0
    notes: dict[str, Any] = field(default_factory=dict)
    last_batch: int = field(default=1, init=False)
    _followers: dict[str, Follower] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state under a stable name."""
        out: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            out |= {f"net/{name}/{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for parameter, key in self._parameter_names(optimizer):
                for entry, value in optimizer.state.get(parameter, {}).items():
                    out[f"opt/{name}/{key}/{entry}"] = torch.as_tensor(value)
        if self.notes:
            out[NOTES] = torch.frombuffer(bytearray(json.dumps(self.notes).encode()), dtype=torch.uint8)
        return out

    def load_tensors(self, tensors: Mapping[str, Tensor], images: int) -> None:
        """Take over a state of :meth:`tensors`; names and shapes must agree, else nothing is changed."""
        own = {name: tensor for name, tensor in self.tensors().items() if name.startswith("net/")}
        there = {name: tensor for name, tensor in tensors.items() if name.startswith("net/")}
        differences = _differences(own, there)
        if differences:
            more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise FeatlensError(
                f"the state is of another network: {'; '.join(differences[:SHOWN])}{more}; "
                "go on with the settings that the state was saved with, or start in another folder"
            )
        notes = _read_notes(tensors.get(NOTES))
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
        self.notes = notes

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
            self._follower(name, average).move(decay)

    def _follower(self, name: str, average: Average) -> Follower:
        mean, now = self.networks[name], self.networks[average.of]
        held = self._followers.get(name)
        if held is None or held.average is not mean or held.module is not now:
            held = self._followers[name] = Follower(mean, now)
        return held


SHOWN = 4
"""How many differences a message lists."""


def _differences(own: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> list[str]:
    """What tells two sets of named tensors apart: whole networks first, then tensors, with both shapes."""
    ours, theirs = ({name.split("/")[1] for name in names} for names in (own, there))
    lines = [f"network {name!r} is missing there" for name in sorted(ours - theirs)]
    lines += [f"network {name!r} is only there" for name in sorted(theirs - ours)]
    for name in [*own, *(name for name in there if name not in own)]:
        if name.split("/")[1] not in ours & theirs:
            continue
        shapes = [str(tuple(side[name].shape)) if name in side else "missing" for side in (there, own)]
        if shapes[0] != shapes[1]:
            lines.append(f"{name} {shapes[0]} there, {shapes[1]} here")
    return lines


def _read_notes(held: Tensor | None) -> dict[str, Any]:
    """Notes of a state, empty where it has none."""
    if held is None:
        return {}
    try:
        notes = json.loads(bytes(held.cpu().to(torch.uint8).tolist()).decode())
    except ValueError as error:
        raise FeatlensError(
            f"the notes of the state cannot be read ({error}); use an earlier state"
        ) from None
    if not isinstance(notes, dict):
        raise FeatlensError("the notes of the state are no table of names and values; use an earlier state")
    return notes


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


def update(
    engine: Engine,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    what: str,
    images: int,
    advise: Callable[[], str] | None = None,
) -> float:
    """One optimiser step on the mean of ``losses``, one a part of the batch; returns that mean.

    The mean is over parts and processes, and is looked at before the weights move: if it is not finite, no
    weight changes, and every process raises the :class:`TrainingError`.

    Parameters
    ----------
    engine, optimizer
        Who does the step, and with what.
    losses
        One scalar for each of ``engine.parts``, built lazily.
    what, images, advise
        For the error: the loss' name, images seen, and what to do about it.
    """
    seen: list[Tensor] = []
    found: list[float] = []

    def watched() -> Iterator[Tensor]:
        for loss in losses:
            seen.append(loss.detach())
            yield loss
        mean = engine.mean(torch.stack(seen).mean())
        if advise is not None and not bool(torch.isfinite(mean)):
            found.append(finite(mean, what, images, advise()))
        found.append(finite(mean, what, images))

    engine.update(optimizer, watched())
    return found[0]


def why_not_finite(data: ImageData, rows: Tensor, advice: str = "lower the learning rate") -> str:
    """What to do about a loss that is not finite: the images of a batch to repair, else ``advice``."""
    images, _ = data.batch(rows)
    wrong = sorted(set(rows[~torch.isfinite(images).flatten(1).all(1).cpu()].tolist()))
    if not wrong:
        return advice
    named = ", ".join(str(row) for row in wrong[:4]) + (", ..." if len(wrong) > 4 else "")
    return f"images {named} of the data hold values that are not finite: repair them or leave them out"


def optimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimiser step on ``loss``."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
