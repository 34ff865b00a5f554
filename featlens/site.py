"""Sites: the modules of a network whose outputs are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from featlens.names import match_names

__all__ = ["Site", "select", "sites"]


@dataclass(frozen=True)
class Site:
    """One module of a network: its path, class, and position in the order of definition."""

    name: str
    kind: str
    order: int


def sites(module: nn.Module, patterns: str | Sequence[str] | None = None) -> list[Site]:
    """Sites of ``module`` that match the glob patterns (all if None), in the order of definition.

    ``*`` stays inside one level of the path and ``**`` crosses levels: ``"enc.*"`` gives the encoder's
    blocks, ``"enc.**"`` also everything inside them.

    Examples
    --------
    >>> from torch import nn
    >>> [site.name for site in sites(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
    ['0', '1']
    """
    kinds = {name: type(child).__name__ for name, child in module.named_modules() if name and _runs(child)}
    wanted = (
        list(kinds)
        if patterns is None
        else match_names(kinds, patterns, f"the network {type(module).__name__}")
    )
    return [Site(name, kinds[name], order) for order, name in enumerate(wanted)]


def _runs(module: nn.Module) -> bool:
    """False for mere containers such as ModuleList, which have no forward pass of their own."""
    return getattr(module.forward, "__func__", None) is not nn.Module.forward


def select(module: nn.Module, patterns: str | Sequence[str]) -> dict[str, nn.Module]:
    """Modules by name for the sites that match."""
    found = dict(module.named_modules())
    return {site.name: found[site.name] for site in sites(module, patterns)}
