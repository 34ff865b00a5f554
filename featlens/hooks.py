"""Hooks on the inputs and outputs of chosen modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from featlens.outputs import Inputs, parameter_names
from featlens.selection import Target

__all__ = ["See", "attach"]

See = Callable[[Sequence[Target], Any], Any]
"""Called with the targets that one hook serves and the output, or the :class:`Inputs`, of the module.

What it returns takes the place of the value in the network; None leaves the value as it is.
"""


def attach(handles: list[RemovableHandle], targets: Sequence[Target], see: See) -> None:
    """Register one hook for each module and side; every handle is in ``handles`` as soon as there is one."""
    groups: dict[tuple[str, str], list[Target]] = {}
    for target in targets:
        groups.setdefault((target.path, target.side), []).append(target)
    for (_, side), group in groups.items():
        module = group[0].module
        if side == "out":
            handles.append(module.register_forward_hook(_after(group, see)))
        else:
            handles.append(module.register_forward_pre_hook(_before(group, see), with_kwargs=True))


def _after(group: Sequence[Target], see: See) -> Callable[[nn.Module, Any, Any], Any]:
    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return see(group, output)

    return after


def _before(
    group: Sequence[Target], see: See
) -> Callable[[nn.Module, Any, dict[str, Any]], tuple[Any, dict[str, Any]] | None]:
    names = parameter_names(group[0].module)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        changed = see(group, Inputs(args, kwargs, names))
        return None if changed is None else (changed.args, changed.kwargs)

    return before
