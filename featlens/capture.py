"""Capture of inner activations by forward hooks that never outlive their block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featlens.errors import FeatlensError, SiteError, choices_hint
from featlens.reduce import Reducer, resolve
from featlens.site import select

__all__ = ["Capture"]


class Capture(Mapping[str, Tensor]):
    """Context manager that keeps the outputs of chosen modules during a forward pass of any ``nn.Module``.

    Hooks are registered on entry and removed on exit, also after an exception. What is kept is a copy, so
    later in-place operations cannot change it. Each forward pass of ``module`` replaces what the one before
    left; a site that runs several times in one pass is kept as ``name#0``, ``name#1``, ...

    Parameters
    ----------
    module
        Any module.
    sites
        Glob pattern or patterns over module paths (see :func:`featlens.sites`).
    reduce
        ``"gap"``, ``"flatten"``, ``"grid(k)"``, a function (B, ...) -> (B, D), or None to keep everything.
        Applied on the device of the activation.
    grad
        Keep the graph so that gradients flow; otherwise activations are detached.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    >>> with Capture(net, "0", reduce="gap") as seen:
    ...     _ = net(torch.zeros(2, 1, 8, 8))
    >>> seen["0"].shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        module: nn.Module,
        sites: str | Sequence[str],
        reduce: str | Reducer | None = None,
        grad: bool = False,
    ) -> None:
        self.module = module
        self.targets = select(module, sites)
        self._reduce = None if reduce is None else resolve(reduce)[1]
        self._grad = grad
        self._handles: list[RemovableHandle] = []
        self._calls: list[tuple[str, Tensor, tuple[int, ...]]] = []

    def __enter__(self) -> Capture:
        if self._handles:
            raise FeatlensError("this Capture is already active; make a new one for a nested block")
        self._calls.clear()
        try:
            self._handles.append(self.module.register_forward_pre_hook(self._begin))
            for name, target in self.targets.items():
                self._handles.append(target.register_forward_hook(self._hook(name)))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._calls.clear()

    def _hook(self, name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            value = _tensor_of(name, output)
            with torch.set_grad_enabled(self._grad and torch.is_grad_enabled()):
                kept = value if self._grad else value.detach()
                # A reduction may return its input (a vector) or a view of it: the copy is what keeps it safe.
                kept = kept.clone() if self._reduce is None else self._reduce(kept).clone()
            self._calls.append((name, kept, tuple(value.shape)))

        return keep

    def _named(self) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
        counts: dict[str, int] = {}
        for name, _, _ in self._calls:
            counts[name] = counts.get(name, 0) + 1
        seen: dict[str, int] = {}
        out: dict[str, tuple[Tensor, tuple[int, ...]]] = {}
        for name, value, shape in self._calls:
            index = seen.get(name, 0)
            seen[name] = index + 1
            out[name if counts[name] == 1 else f"{name}#{index}"] = (value, shape)
        return out

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each activation before reduction, in order of execution."""
        return {name: shape for name, (_, shape) in self._named().items()}

    def __getitem__(self, name: str) -> Tensor:
        named = self._named()
        if name in named:
            return named[name][0]
        if name in self.targets and f"{name}#0" in named:
            calls = [key for key in named if key.rpartition("#")[0] == name]
            raise SiteError(f"site {name!r} ran several times; choose one of {calls}")
        if name in self.targets:
            raise SiteError(
                f"site {name!r} did not run in the last forward pass; run the model, or leave this site out"
            )
        raise SiteError(f"site {name!r} was not captured: {choices_hint(name, named or self.targets)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._named())

    def __len__(self) -> int:
        return len(self._calls)

    def require_all(self) -> None:
        """An error that names the chosen sites that did not run in the last forward pass."""
        ran = {name for name, _, _ in self._calls}
        missing = [name for name in self.targets if name not in ran]
        if missing:
            raise SiteError(
                f"{len(missing)} chosen sites did not run in the forward pass, first {missing[0]!r}; "
                "leave them out"
            )


def _tensor_of(name: str, output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return output[0]
    if isinstance(output, Mapping):
        found = f"a mapping with keys {list(output)}"
    else:
        found = f"a {type(output).__name__}"
    raise FeatlensError(
        f"site {name!r} returned {found}; a tensor or a tuple that begins with one was expected; "
        "choose a site inside it"
    )
