"""What is kept of one activation: a copy, a reduction, or a place on the path to the output."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from featlens.errors import FeatlensError, UsageError
from featlens.reduce import Reducer, is_own

__all__ = ["in_backward", "keep_detached", "keep_on_path", "keep_reduced", "version_of"]


def in_backward() -> bool:
    """True where a checkpointed part of the network is run again to compute gradients."""
    return bool(torch._C._current_graph_task_id() != -1)


def version_of(value: Tensor) -> int | None:
    """How often ``value`` was changed in place; None where that is not counted (inference tensors)."""
    return None if value.is_inference() else int(value._version)


def keep_detached(value: Tensor) -> Tensor:
    """A copy without graph; a normal tensor also in inference mode, so that it can be trained on."""
    if value.is_inference():
        with torch.inference_mode(False):
            return value.detach().clone()
    return value.detach().clone()


def keep_reduced(value: Tensor, reducer: Reducer, name: str, grad: bool) -> Tensor:
    """The reduction of ``value``, which shares no memory with it; in the graph if ``grad``.

    Raises
    ------
    FeatlensError
        If the reduction gives no tensor, or changes its input, which is the network's.
    """
    if grad and torch.is_grad_enabled():
        # Of a copy: a reduction may save its input for backward, and the network may then change it in place.
        return _reduced(value.clone(), reducer, name)
    if value.is_inference():
        with torch.inference_mode(False), torch.no_grad():
            return _without_graph(value, reducer, name)
    return _without_graph(value, reducer, name)


def _without_graph(value: Tensor, reducer: Reducer, name: str) -> Tensor:
    if is_own(reducer) and torch.is_grad_enabled():
        with torch.no_grad():  # it may hold parameters
            reduced = _reduced(value.detach(), reducer, name)
    else:
        reduced = _reduced(value.detach(), reducer, name)
    return reduced.clone() if _may_share(reduced, value) else reduced


def _reduced(value: Tensor, reducer: Reducer, name: str) -> Tensor:
    if not is_own(reducer):
        try:
            if value.is_complex():
                raise UsageError(
                    "complex numbers have no reduction; give a function, such as torch.view_as_real"
                )
            return reducer(value)
        except UsageError as error:
            raise UsageError(f"site {name!r}: {error}") from None
    before = version_of(value)
    half = value.is_floating_point() and value.element_size() < 4
    with _as_alone(value):
        result: object = reducer(value.float() if half else value)
    if not isinstance(result, Tensor):
        raise FeatlensError(
            f"the reduction of site {name!r} gave a {type(result).__name__}; it has to return a tensor"
        )
    if version_of(value) != before:
        raise FeatlensError(
            f"the reduction of site {name!r} changed its input, which the network still uses; clone it first"
        )
    return result


@contextlib.contextmanager
def _as_alone(value: Tensor) -> Iterator[None]:
    """A copy of the random state, and no autocast, while a function of the user's runs."""
    kind = value.device.type
    with contextlib.ExitStack() as stack:
        if kind in ("cpu", "meta"):
            stack.enter_context(torch.random.fork_rng(devices=[]))
        else:
            stack.enter_context(torch.random.fork_rng(devices=[value.device.index or 0], device_type=kind))
        if kind != "meta" and torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _may_share(reduced: Tensor, value: Tensor) -> bool:
    try:
        return reduced.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without storage
        return True


def keep_on_path(value: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is kept with its graph, and what the network goes on with: None where that is ``value`` itself.

    Nobody but the caller holds what is kept, so no in-place operation reaches it, and all that leaves it is
    the copy that the network goes on with: its gradient is the one through this site.
    """
    differentiable = value.is_floating_point() or value.is_complex()
    if not (torch.is_grad_enabled() and differentiable):
        return keep_detached(value), None
    kept = value.clone() if value.requires_grad else value.detach().clone().requires_grad_()
    return kept, kept.clone()
