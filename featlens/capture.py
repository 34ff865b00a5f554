"""Capture of inner activations by forward hooks that never outlive their block."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featlens.eager import hold_eager, release_eager
from featlens.errors import FeatlensError, SiteError, choices_hint
from featlens.hooks import attach
from featlens.keeping import in_backward, keep_detached, keep_on_path, keep_reduced, version_of
from featlens.outputs import pick, replace
from featlens.reduce import Reducer, resolve
from featlens.selection import Selection, Target, Tree, canonical, numbered

__all__ = ["Capture"]

T = TypeVar("T")


class _Stop(BaseException):
    """Ends a forward pass; not an Exception, so that no handler in the network takes it for a failure."""

    def __init__(self, owner: Capture) -> None:
        super().__init__("the forward pass was ended by featlens.Capture(stop_after=...)")
        self.owner = owner


@dataclass(frozen=True)
class _Call:
    target: Target
    tensor: Tensor
    shape: tuple[int, ...]
    same_as: int | None = None  # position of an earlier call that delivered the very same tensor


class Capture(Mapping[str, Tensor]):
    """Context manager that keeps what chosen modules give or take in a forward pass of any ``nn.Module``.

    A mapping from site name to tensor in order of execution. Hooks are registered on entry and removed on
    exit, also after an exception or an interrupt. What is kept is safe from later in-place operations;
    outputs, modes and random state of the model are as without capture. Each forward pass of ``module``
    replaces what the one before left; a site that runs several times in one pass is kept as ``name#0``,
    ``name#1``, ...

    Parameters
    ----------
    module
        Any module, also wrapped by DistributedDataParallel or ``torch.compile`` (what was compiled runs
        eagerly inside the block, because compiled code skips hooks).
    sites
        Globs, ``re:``, ``type:``, ``index:``, numbers, classes or functions; see :func:`featlens.sites`.
    reduce
        ``"gap"``, ``"flatten"``, ``"tokens"``, ``"grid(k)"``, ``"project(d)"``, a function (B, ...) ->
        tensor, or None to keep everything. Applied on the device of the activation, to float32 where that
        is in half precision.
    grad
        Keep the graph. Without a reduction what is kept lies on the path to the output, so that
        ``torch.autograd.grad(out.sum(), seen["x"])`` is the gradient through this site alone, also in a
        frozen model. With one, gradients flow from what is kept to weights and inputs.
    stop_after
        End forward passes as soon as nothing more is wanted. True: the first pass runs whole and shows
        which call is the last. A site name: every pass ends after its first call. Ends the ``with`` block;
        use :meth:`run` for several passes.

    Examples
    --------
    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    >>> with Capture(net, ["0", "1@in"], reduce="gap") as seen:
    ...     _ = net(torch.zeros(2, 1, 8, 8))
    >>> seen["0"].shape, seen.duplicates
    (torch.Size([2, 4]), {'1@in': '0'})
    """

    def __init__(
        self,
        module: nn.Module,
        sites: Selection,
        reduce: str | Reducer | None = None,
        grad: bool = False,
        stop_after: bool | str = False,
    ) -> None:
        tree = Tree(module)
        self.module = tree.root
        self._given = module
        self._targets = tree.choose(sites)
        self._reduce = None if reduce is None else resolve(reduce)[1]
        self._grad = grad
        self._stop_at: tuple[str, int] | None = None
        self._learns = stop_after is True
        # The last wanted call of a pass of the module, and of a whole run, which may hold several passes.
        self._learnt: dict[bool, tuple[str, int]] = {}
        if isinstance(stop_after, str):
            self._stop_at = self._stopping_place(canonical(stop_after))
        self._handles: list[RemovableHandle] = []
        self._active = self._in_run = self._stopped = False
        self._clear()

    def _stopping_place(self, name: str) -> tuple[str, int]:
        site, _, call = name.rpartition("#")
        for target in self._targets:
            if name == target.name:
                return target.base, target.call or 0
            if target.call is None and site == target.site and call.isdecimal():
                return target.base, int(call)
        names = [target.name for target in self._targets]
        raise SiteError(f"stop_after: {name!r} is none of the chosen sites; {choices_hint(name, names)}")

    def _clear(self) -> None:
        self._calls: list[_Call] = []
        self._counts: dict[str, int] = {}
        self._last: tuple[str, int] | None = None
        self._delivered: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._names: dict[str, int] | None = None

    def __enter__(self) -> Capture:
        if self._active:
            raise FeatlensError("this Capture is already active; make a new one for a nested block")
        self._clear()
        hold_eager(self._given)
        self._active = True
        try:
            self._handles.append(self.module.register_forward_pre_hook(self._begin))
            attach(self._handles, self._targets, self._see)
            if self._learns:
                self._handles.append(self.module.register_forward_hook(self._end))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._remove()
        return isinstance(value, _Stop) and value.owner is self

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._active:
            self._active = False
            release_eager()

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """Call ``function`` and keep what the sites do in it; None if ``stop_after`` ended it early.

        The call is one pass, however often it runs the module: where it does so several times, every call
        of a site is kept. Outside a ``with`` block, hooks are there during the call.
        """
        if not self._active:
            with self:
                return self.run(function, *args, **kwargs)
            return None  # never: run has caught what the block would
        if self._in_run:
            raise FeatlensError(
                "Capture.run cannot be called inside the function it runs; make a new Capture"
            )
        self._begin_pass()
        self._in_run = True
        try:
            result = function(*args, **kwargs)
        except _Stop as stop:
            if stop.owner is not self:
                raise
            return None
        finally:
            self._in_run = False
        self._learn(in_run=True)
        return result

    def _begin_pass(self) -> None:
        self._clear()
        self._stopped = False

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if not self._in_run and not in_backward():
            self._begin_pass()

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._in_run and not in_backward():
            self._learn(in_run=False)

    def _learn(self, in_run: bool) -> None:
        # From a pass in which a site did not run it cannot be told when all have.
        if self._learns and self._last is not None and not self._not_run():
            self._learnt.setdefault(in_run, self._last)

    def _see(self, group: Sequence[Target], value: Any) -> Any:
        base = group[0].base
        if in_backward():
            # Checkpointing runs a part again: its graph has to be the same there, and nothing new is seen.
            return self._passed_on(group, value, None) if self._grad else None
        place = base, self._counts.get(base, 0)
        self._counts[base] = place[1] + 1
        seen = len(self._calls)
        changed = self._passed_on(group, value, place[1])
        if len(self._calls) > seen:
            self._last = place
            self._names = None
        if place in (self._stop_at, self._learnt.get(self._in_run)):
            self._stopped = True
            raise _Stop(self)
        return changed

    def _passed_on(self, group: Sequence[Target], value: Any, call: int | None) -> Any:
        """Keep what the group asks of ``value``; what the network goes on with, None if that is ``value``."""
        changed = None
        for target in group:
            if call is not None and target.call not in (None, call):
                continue
            at_hand = value if changed is None else changed
            keys, tensor = pick(at_hand, target.keys, target.base)
            passed = self._keep(target, tensor, record=call is not None)
            if passed is not None:
                changed = replace(at_hand, keys, passed)
        return changed

    def _keep(self, target: Target, value: Tensor, record: bool) -> Tensor | None:
        same_as = None if self._grad else self._same(value)
        passed = None
        if same_as is not None:
            kept = self._calls[same_as].tensor
        elif self._reduce is not None:
            kept = keep_reduced(value, self._reduce, target.name, self._grad)
        elif self._grad:
            kept, passed = keep_on_path(value)
        else:
            kept = keep_detached(value)
        if record:
            version = version_of(value)
            if same_as is None and version is not None:
                self._delivered[id(value)] = (weakref.ref(value), version, len(self._calls))
            self._calls.append(_Call(target, kept, tuple(value.shape), same_as))
        return passed

    def _same(self, value: Tensor) -> int | None:
        """Earlier call that delivered this tensor object, unchanged since."""
        known = self._delivered.get(id(value))
        # Only as long as the object lives: another may get its id.
        if known is None or known[0]() is not value or known[1] != version_of(value):
            return None
        return known[2]

    def _named(self) -> dict[str, int]:
        """Position among the calls by name, in order of execution."""
        if self._names is None:
            # A target of a single call bears its number already.
            names = numbered([call.target.name for call in self._calls])
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise SiteError(f"two sites are called {twice!r}; leave one out")
            self._names = {name: position for position, name in enumerate(names)}
        return self._names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each activation before reduction, with the batch axis, in order of execution."""
        return {name: self._calls[at].shape for name, at in self._named().items()}

    @property
    def kinds(self) -> dict[str, str]:
        """Class of the module of each activation, in order of execution."""
        return {name: type(self._calls[at].target.module).__name__ for name, at in self._named().items()}

    @property
    def duplicates(self) -> dict[str, str]:
        """Sites that delivered the very same tensor as an earlier one, with its name; what is kept is shared.

        Such as a Sequential and its last module, or a module's input and the output of the one before.
        Known only without ``grad`` and outside inference mode.
        """
        names = list(self._named())
        same = {names[at]: call.same_as for at, call in enumerate(self._calls)}
        return {name: names[at] for name, at in same.items() if at is not None}

    def __getitem__(self, name: str) -> Tensor:
        named = self._named()
        at = named.get(name, named.get(canonical(name)))
        if at is not None:
            return self._calls[at].tensor
        raise SiteError(self._missing(canonical(name)))

    def _missing(self, name: str) -> str:
        calls = [key for key in self._named() if key.rpartition("#")[0] == name]
        if calls:
            return f"site {name!r} ran several times; choose one of {calls}"
        if any(name == target.name for target in self._targets):
            return f"site {name!r} did not run in the last forward pass{self._why()}"
        choices = self._named() or [target.name for target in self._targets]
        return f"site {name!r} was not captured: {choices_hint(name, choices)}"

    def _why(self) -> str:
        if self._stopped:
            return ", which stop_after ended; stop later, or leave it out"
        if not self._calls:
            return "; run the model, or leave it out"
        return (
            "; leave it out (a module whose forward is called directly, or whose weights are used by others, "
            "fires no hook)"
        )

    def _not_run(self) -> list[str]:
        ran = {call.target.name for call in self._calls}
        return [target.name for target in self._targets if target.name not in ran]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named())

    def __len__(self) -> int:
        return len(self._calls)

    def require_all(self) -> None:
        """An error that names the chosen sites that did not run in the last forward pass."""
        missing = self._not_run()
        if missing:
            raise SiteError(
                f"{len(missing)} chosen sites did not run in the forward pass, "
                f"first {missing[0]!r}{self._why()}"
            )
