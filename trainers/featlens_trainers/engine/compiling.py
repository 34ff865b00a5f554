"""Compiled networks that fall back to plain ones where no compiler works."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from featlens.errors import UsageError, choices_hint

__all__ = ["Compiled", "check_backend"]

_log = logging.getLogger(__name__)


def check_backend(backend: str) -> None:
    """Refuse a backend that torch.compile does not have."""
    from torch._dynamo import list_backends

    known = list_backends(exclude_tags=())
    if backend not in known:
        raise UsageError(f"compile: unknown backend {backend!r}: {choices_hint(backend, known)}")


class Compiled(nn.Module):
    """What to call instead of a network: the same parameters, compiled at the first call.

    torch compiles when a network is first called, so it is then that a missing compiler is found; the
    network goes on uncompiled, with one warning. Everything but calls is that of the network itself.

    Parameters
    ----------
    network
        Stays as it is.
    backend
        Of :func:`torch.compile`.
    """

    def __init__(self, network: nn.Module, backend: str = "inductor") -> None:
        super().__init__()
        self.network = network
        # Not dynamic: a ratio network meets batches of two sizes, and one kernel for each is faster.
        self._fast: list[Any] = [torch.compile(network, backend=backend, dynamic=False)]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        if not self._fast:
            return self.network(*args, **kwargs)
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._fast[0](*args, **kwargs)
        except TorchDynamoException as error:
            self._fast.clear()
            first = " ".join(str(error).split("Set TORCH")[0].split())[:160]
            _log.warning("--compile: no compiler works here, so training goes on without (%s)", first)
            return self.network(*args, **kwargs)
