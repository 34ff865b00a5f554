"""Denoisers from settings and tensors that come from a file, checked before memory is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError
from featlens_trainers.convert.machine import shown
from featlens_trainers.networks import build_denoiser

if TYPE_CHECKING:
    from torch import Tensor

    from featlens_trainers.settings.network import NetworkConfig

__all__ = ["assemble"]

NAMED = 5


def assemble(
    config: NetworkConfig,
    sigma_data: float,
    sizes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], Tensor],
    where: str,
) -> EDMDenoiser:
    """Denoiser in evaluation mode whose tensors are all taken from a file, one by one.

    Parameters
    ----------
    config, sigma_data
        Of the network.
    sizes
        Shapes of the tensors in the file by name, ``network.`` before each.
    tensor
        Reads one of them.
    where
        The file, for messages.

    Raises
    ------
    FeatlensError
        Tensors are missing, left over or of another shape.
    """
    _require_modest(config, len(sizes), where)
    # Without memory first: a file may claim any size.
    with torch.device("meta"):
        outline = {
            name: tuple(held.shape)
            for name, held in build_denoiser(config, sigma_data, 0).state_dict().items()
        }
    _require_same(outline, sizes, where)
    denoiser = build_denoiser(config, sigma_data, 0)
    with torch.no_grad():
        for name, held in denoiser.state_dict().items():
            held.copy_(tensor(name))
    return denoiser.eval()


def _require_modest(config: Any, count: int, where: str) -> None:
    """Refuse more levels or blocks than there are tensors: building them would take forever."""
    levels = len(getattr(config, "channel_mult", ()))
    if max(levels, *(int(getattr(config, name, 0)) for name in ("blocks", "depth"))) > count or levels > 16:
        raise FeatlensError(
            f"{where}: its settings ask for more blocks than the {count} tensors there could fill; the file "
            "is damaged"
        )


def _require_same(
    ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], where: str
) -> None:
    missing = [name for name in ours if name not in theirs]
    extra = [name for name in theirs if name not in ours]
    other = [
        f"{name} {list(theirs[name])} for {list(ours[name])}"
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]
    said = [
        f"{len(names)} {what}: {', '.join(shown(name) for name in names[:NAMED])}"
        + (", ..." if len(names) > NAMED else "")
        for names, what in ((missing, "missing"), (extra, "left over"), (other, "of another shape"))
        if names
    ]
    if said:
        raise FeatlensError(
            f"{where}: the tensors are not those of this architecture ({'; '.join(said)}); the file is of a "
            "changed network or damaged"
        )
