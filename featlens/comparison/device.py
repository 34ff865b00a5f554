"""Where the matrix products of a comparison run: numpy, or torch on a device."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError

__all__ = ["Device", "open_device"]


@dataclass(frozen=True)
class Device:
    """Namespace of the array API and the place of its arrays."""

    name: str
    xp: Any
    place: Any = None
    half_precision: bool = False
    """Whether float64 is missing there."""

    def put(self, array: NDArray[Any]) -> Any:
        """Numpy array as an array of the device."""
        if self.place is None:
            return array
        return self.xp.asarray(array, device=self.place)

    def get(self, array: Any) -> NDArray[Any]:
        """Array of the device as numpy."""
        return np.asarray(array) if self.place is None else np.asarray(array.cpu().numpy())

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Uninitialised array on the device."""
        kind = getattr(self.xp, dtype)
        return self.xp.empty(shape, dtype=kind, **({} if self.place is None else {"device": self.place}))


def open_device(name: str) -> Device:
    """Device by name: ``"cpu"`` is numpy, all others are torch's (``"cuda:1"``, ``"torch:cpu"``)."""
    if name == "cpu":
        import array_api_compat.numpy as xp

        return Device(name, xp)
    try:
        # By name, because this layer must not need torch: import-linter watches over it.
        torch = importlib.import_module("torch")
        xp = importlib.import_module("array_api_compat.torch")
        place = torch.device(name.removeprefix("torch:"))
        torch.zeros(1, device=place)
    except ImportError:
        raise FeatlensError(f"device {name!r} needs torch, which is not installed; use 'cpu'") from None
    except (RuntimeError, AssertionError, NotImplementedError, AttributeError) as error:
        why = str(error).splitlines()[0][:100]
        raise FeatlensError(f"device {name!r} cannot be used here ({why}); use 'cpu' or 'cuda'") from None
    return Device(name, xp, place, half_precision=place.type == "mps")
