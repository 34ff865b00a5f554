"""Public conformance test for denoisers: whether a class does what featlens will ask of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from featlens.denoiser import Denoiser, tensor_digests
from featlens.errors import FeatlensError, UsageError
from featlens.undisturbed import undisturbed

__all__ = ["check_denoiser"]


def check_denoiser(denoiser: Denoiser, sigma: float = 0.5, batch: int = 3) -> None:
    """Raise with the first thing that is wrong; return None if all is well.

    Checked are the attributes; that the output has the shape, dtype and device of the input and is finite;
    that it is the same for the same input, and for a row alone with its own sigma and label; that a
    conditional model takes labels from the first to the last, and without labels gives an estimate or raises
    a ValueError; that a call leaves its inputs, the weights, the modes and PyTorch's random state alone.

    Parameters
    ----------
    denoiser
        Needs no trained weights. It is called in evaluation mode; modes are as before afterwards.
    sigma
        Least noise level; rows go up to twice of it.
    batch
        Rows of a batch, two or more.

    Raises
    ------
    FeatlensError
        One line: what was expected, what came, what to do.
    UsageError
        ``sigma`` or ``batch`` is wrong.

    Examples
    --------
    >>> import torch
    >>> from featlens import EDMDenoiser
    >>> class Network(torch.nn.Conv2d):
    ...     def forward(self, x, c_noise, labels):
    ...         return super().forward(x)
    >>> check_denoiser(EDMDenoiser(Network(1, 1, 1), (1, 4, 4)))
    """
    if batch < 2 or not 0 < sigma < math.inf:
        raise UsageError(f"check_denoiser: expected sigma above 0 and batch above 1, got {sigma} and {batch}")
    _check_attributes(denoiser)
    calls = _Calls(denoiser)
    with undisturbed(*{denoiser.network, *([denoiser] if isinstance(denoiser, nn.Module) else [])}):
        calls.prepare()
        _check_rows(calls, sigma, batch)
        if denoiser.num_labels:
            _check_labels(calls, sigma, batch)
        calls.require_unchanged()


class _Failed(FeatlensError):
    """A check failed, as opposed to errors of the denoiser's own."""


def _fail(message: str) -> _Failed:
    return _Failed(f"check_denoiser: {message}")


def _check_attributes(denoiser: Any) -> None:
    kind = type(denoiser).__name__
    for name in ("sample_shape", "num_labels", "sigma_data", "network"):
        if not hasattr(denoiser, name):
            raise _fail(f"{kind} has no attribute {name!r}; give it one, as featlens.Denoiser describes")
    if not callable(denoiser):
        raise _fail(f"{kind} cannot be called; give it __call__(x, sigma, labels=None)")
    shape, labels, spread = denoiser.sample_shape, denoiser.num_labels, denoiser.sigma_data
    if not isinstance(denoiser.network, nn.Module):
        raise _fail(
            f"network is a {type(denoiser.network).__name__}, expected an nn.Module that holds the sites"
        )
    if not isinstance(shape, tuple | list | torch.Size) or not shape or not all(_whole(n, 1) for n in shape):
        raise _fail(f"sample_shape is {shape!r}, expected the shape of one sample, such as (3, 32, 32)")
    if not _whole(labels, 0):
        raise _fail(f"num_labels is {labels!r}, expected a number of classes, 0 for an unconditional model")
    if not isinstance(spread, int | float) or not 0 < spread < math.inf:
        raise _fail(f"sigma_data is {spread!r}, expected the data's standard deviation, a float above 0")


def _whole(number: Any, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= least


def _modules(denoiser: Any) -> list[tuple[str, nn.Module]]:
    """Every module with its path, those of a denoiser that is itself one included."""
    found = [(f"network.{name}".rstrip("."), module) for name, module in denoiser.network.named_modules()]
    if isinstance(denoiser, nn.Module):
        known = {id(module) for _, module in found}
        found += [(name, module) for name, module in denoiser.named_modules() if id(module) not in known]
    return found


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


class _Calls:
    """Calls of a denoiser, each checked for what holds of every call."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser
        first = next(denoiser.network.parameters(), None)
        self.device = torch.device("cpu") if first is None else first.device
        low = first is not None and first.dtype in (torch.float16, torch.bfloat16)
        self.rtol, self.atol = (5e-2, 5e-2) if low else (1e-3, 1e-4)
        self.weights: dict[str, str] = {}

    @property
    def holder(self) -> nn.Module:
        """The module with all weights."""
        holder: nn.Module = self.denoiser if isinstance(self.denoiser, nn.Module) else self.denoiser.network
        return holder

    def prepare(self) -> None:
        """Remember the weights."""
        self.weights = tensor_digests(self.holder)

    def images(self, sigma: float, batch: int) -> Tensor:
        """(batch, *sample_shape) noise of standard deviation ``sigma``."""
        numbers = torch.Generator().manual_seed(0)
        shape = (batch, *self.denoiser.sample_shape)
        return (sigma * torch.randn(shape, generator=numbers)).to(self.device)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        given = [part for part in (x, sigma, labels) if part is not None]
        before = [part.clone() for part in given]
        states = _random_state(self.device)
        out: Any = self.denoiser(x, sigma, labels)
        if not all(torch.equal(a, b) for a, b in zip(states, _random_state(self.device), strict=True)):
            raise _fail(
                "the call changed PyTorch's random state; in evaluation mode draw nothing, or from a "
                "torch.Generator of your own"
            )
        for name, part, kept in zip(("x", "sigma", "labels"), given, before, strict=False):
            if not torch.equal(part, kept):
                raise _fail(f"the call changed its input {name} in place; clone it first")
        training = [name for name, module in _modules(self.denoiser) if module.training]
        if training:
            raise _fail(
                f"the call put {training[0]!r} into training mode, expected evaluation mode as before; leave "
                "modes to the caller"
            )
        self._check_output(out, x, sigma)
        # What is written into the output's memory later must not reach a result that is compared.
        checked: Tensor = out.clone()
        return checked

    def _check_output(self, out: Any, x: Tensor, sigma: Tensor) -> None:
        if not isinstance(out, Tensor) or out.shape != x.shape:
            came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise _fail(
                f"expected an estimate of x0 of shape {tuple(x.shape)}, got {came}; return one tensor"
            )
        if out.dtype != x.dtype:
            raise _fail(
                f"expected an output of the input's dtype, {x.dtype}, got {out.dtype}; convert it back"
            )
        if out.device != x.device:
            raise _fail(
                f"expected an output on the input's device, {x.device}, got {out.device}; move it back"
            )
        bad = ~torch.isfinite(out).reshape(len(out), -1).all(dim=1)
        if bool(bad.any()):
            level = float(sigma[int(bad.int().argmax())])
            raise _fail(
                f"the output at sigma {level:g} is not finite; check the scalings and the time it is told"
            )

    def gap(self, one: Tensor, other: Tensor) -> float:
        """Greatest difference, 0 if it is no more than rounding."""
        if torch.allclose(one, other, rtol=self.rtol, atol=self.atol):
            return 0.0
        return float((one - other).abs().max())

    def require_unchanged(self) -> None:
        """Refuse weights and buffers that calls have changed."""
        now = tensor_digests(self.holder)
        changed = [name for name in {**self.weights, **now} if self.weights.get(name) != now.get(name)]
        if changed:
            raise _fail(
                f"calls changed {changed[0]!r} ({len(changed)} weights or buffers in all), expected them as "
                "before; update nothing in evaluation mode"
            )


def _check_rows(calls: _Calls, sigma: float, batch: int) -> None:
    """Equal calls give equal results, whatever else is in the batch."""
    x = calls.images(sigma, batch)
    level = torch.full((batch,), sigma, device=calls.device)
    labels = torch.zeros(batch, dtype=torch.int64, device=calls.device) if calls.denoiser.num_labels else None
    whole = calls(x, level, labels)
    gap = calls.gap(whole, calls(x, level, labels))
    if gap:
        raise _fail(
            f"two equal calls gave different outputs (difference {gap:.2g}), expected the same in evaluation "
            "mode; switch off dropout and other chance there"
        )
    alone = calls(x[:1], level[:1], None if labels is None else labels[:1])
    gap = calls.gap(whole[:1], alone)
    if gap:
        raise _fail(
            f"a sample's output depends on its batch (difference {gap:.2g}), expected the same as alone; use "
            "no statistics over the batch"
        )
    rows = torch.arange(batch, device=calls.device)
    levels = sigma * (1 + rows / (batch - 1))
    row = _differing_row(calls, x, levels, labels)
    if row is not None:
        raise _fail(
            f"with a sigma for each row, {_listed(levels)}, row {row[0]} differs from the same row alone by "
            f"{row[1]:.2g}; sigma is (B,): use each row's own, as in sigma.reshape(-1, 1, 1, 1)"
        )


def _check_labels(calls: _Calls, sigma: float, batch: int) -> None:
    """Each row has its own label; no labels is an estimate or a refusal."""
    x = calls.images(sigma, batch)
    level = torch.full((batch,), sigma, device=calls.device)
    last = calls.denoiser.num_labels - 1
    labels = torch.linspace(last, 0, batch, dtype=torch.float64).round().long().to(calls.device)
    row = _differing_row(calls, x, level, labels)
    if row is not None:
        raise _fail(
            f"with a label for each row, {_listed(labels)}, row {row[0]} differs from the same row alone by "
            f"{row[1]:.2g}; labels are (B,): use each row's own"
        )
    try:
        calls(x, level, None)
    except _Failed:
        raise
    except (FeatlensError, ValueError):
        pass
    except Exception as error:
        came = f"{type(error).__name__} ({' '.join(str(error).split())})"
        raise _fail(
            f"without labels the call raised {came}; expected the unconditional estimate, or a ValueError "
            "that says that labels are needed"
        ) from error


def _differing_row(
    calls: _Calls, x: Tensor, levels: Tensor, labels: Tensor | None
) -> tuple[int, float] | None:
    """First row whose output is another one alone, and by how much."""
    whole = calls(x, levels, labels)
    for row in range(len(x)):
        here = slice(row, row + 1)
        gap = calls.gap(whole[here], calls(x[here], levels[here], None if labels is None else labels[here]))
        if gap:
            return row, gap
    return None


def _listed(values: Tensor) -> str:
    return ", ".join(f"{float(value):g}" for value in values)
