"""Sites: the inputs and outputs of a network's modules that can be looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from featlens.denoiser import Denoiser
from featlens.eager import hold_eager, release_eager
from featlens.hooks import attach
from featlens.outputs import bracketed, leaves, pick
from featlens.selection import Selection, Target, Tree, numbered
from featlens.undisturbed import undisturbed

__all__ = ["Selection", "Site", "describe", "sites"]


@dataclass(frozen=True)
class Site:
    """One tensor that a module of a network takes or gives.

    Attributes
    ----------
    name
        What :class:`featlens.Capture` calls it: ``blocks.0``, ``lstm[0]``, ``blocks.0@in``, ``shared#1``.
    kind
        Class of the module.
    index
        Position of the module in the order of definition, among all that have a forward pass.
    order
        Position in the order of execution; None if unknown, or if it did not run.
    shape
        Shape without the batch axis, None if unknown.
    channels, resolution
        Of maps (B, C, H, W): C and H. Of tokens (B, T, D) and vectors (B, D): D and 0. 0 where unknown.
    """

    name: str
    kind: str
    index: int
    order: int | None = None
    shape: tuple[int, ...] | None = None
    channels: int = 0
    resolution: int = 0


def describe(shape: Sequence[int]) -> tuple[int, int]:
    """Channels and resolution of an activation of the given whole shape, (B, ...).

    >>> describe((8, 64, 16, 16)), describe((8, 197, 768)), describe((8, 10))
    ((64, 16), (768, 0), (10, 0))
    """
    if len(shape) > 3:
        return int(shape[1]), int(shape[2])
    return (int(shape[-1]) if len(shape) > 1 else 1), 0


def sites(
    module: nn.Module | Denoiser,
    selection: Selection | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | Tensor | None = None,
) -> list[Site]:
    """Sites of ``module`` that ``selection`` means (every module's output if None).

    Parameters
    ----------
    module
        Any module, or a :class:`featlens.Denoiser`, whose sites are looked up in its ``network``.
    selection
        Glob (``*`` within a level of the path, ``**`` across levels), ``re:REGEX``, ``type:Conv2d``,
        ``index:3``, ``index:2:6``, an int, a class, a function of (path, module), or a list of these. Text
        may end in ``@in`` for the module's input, keys such as ``[0]`` or ``[sample]`` for a tensor inside
        it, and ``#1`` for one call.
    inputs
        Arguments for one forward pass: a tuple, a dict of keyword arguments, or a tensor. The pass is run
        in evaluation mode, without gradients and on a copy of the random state. A denoiser needs none: it
        is run on one noised zero sample.

    Returns
    -------
    list[Site]
        In order of execution, each tensor of a structured output and each repeated call by itself, then
        those that did not run. Without a forward pass: in order of definition, without shapes.

    Raises
    ------
    SiteError
        If a part of the selection matches nothing.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> [site.name for site in sites(net)]
    ['0', '1']
    >>> sites(net, "type:Linear", torch.zeros(1, 2))
    [Site(name='0', kind='Linear', index=0, order=0, shape=(3,), channels=3, resolution=0)]
    """
    if _is_denoiser(module):
        denoiser = cast(Denoiser, module)
        tree, runner = Tree(denoiser.network), denoiser
        arguments: Any = _noised(denoiser) if inputs is None else inputs
    else:
        tree, runner, arguments = Tree(cast(nn.Module, module)), cast(Any, module), inputs
    targets = tree.choose(selection)
    named = [Site(target.name, type(target.module).__name__, tree.index[target.path]) for target in targets]
    if arguments is None:
        return named
    ran = _trace(runner, tree, targets, arguments)
    started = {target for target, _, _ in ran}
    names = numbered([name for _, name, _ in ran])
    found = []
    for order, (name, (target, _, shape)) in enumerate(zip(names, ran, strict=True)):
        site = Site(name, type(target.module).__name__, tree.index[target.path], order)
        if shape is not None:
            channels, resolution = describe(shape)
            site = replace(site, shape=shape[1:], channels=channels, resolution=resolution)
        found.append(site)
    return found + [site for site, target in zip(named, targets, strict=True) if target not in started]


def _is_denoiser(module: object) -> bool:
    return all(hasattr(module, name) for name in ("network", "sample_shape", "sigma_data"))


def _place(module: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _noised(denoiser: Denoiser) -> tuple[Any, ...]:
    """Arguments of one call: a zero image with noise of the data's own spread."""
    device = _place(denoiser.network)
    numbers = torch.Generator().manual_seed(0)
    noise = torch.randn((1, *denoiser.sample_shape), generator=numbers).to(device)
    sigma = float(denoiser.sigma_data)
    labels = torch.zeros(1, dtype=torch.int64, device=device) if getattr(denoiser, "num_labels", 0) else None
    return sigma * noise, torch.full((1,), sigma, device=device), labels


def _trace(
    runner: Any, tree: Tree, targets: Sequence[Target], arguments: Any
) -> list[tuple[Target, str, tuple[int, ...] | None]]:
    """Target, name and shape of everything seen in one call, in order of execution."""
    seen: list[tuple[Target, str, tuple[int, ...] | None]] = []
    calls: dict[str, int] = {}

    def see(group: Sequence[Target], value: Any) -> None:
        call = calls.get(group[0].base, 0)
        calls[group[0].base] = call + 1
        for target in group:
            if target.call is not None and target.call != call:
                continue
            inside = [pick(value, target.keys, target.base)] if target.keys else list(leaves(value))
            for keys, tensor in inside:
                shown = target.keys if len(inside) == 1 else keys
                seen.append((target, _named(target, shown), tuple(tensor.shape)))
            if not inside:
                seen.append((target, target.name, None))

    handles: list[RemovableHandle] = []
    hold_eager(runner if isinstance(runner, nn.Module) else tree.root)
    try:
        attach(handles, targets, see)
        with undisturbed(*{tree.root, *([runner] if isinstance(runner, nn.Module) else [])}):
            if isinstance(arguments, Mapping):
                runner(**arguments)
            else:
                runner(*((arguments,) if isinstance(arguments, Tensor) else arguments))
    finally:
        for handle in handles:
            handle.remove()
        release_eager()
    return seen


def _named(target: Target, keys: tuple[str, ...]) -> str:
    return target.base + bracketed(keys) + ("" if target.call is None else f"#{target.call}")
