"""What every measure does to its input first: arrays of one kind, (n, d), finite, in float64, centred."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import UsageError

__all__ = ["Array", "centred", "checked", "namespace", "norm", "rescaled", "same_rows", "take"]

Array = Any


def namespace(*arrays: Array, measure: str = "measures") -> Any:
    """Array API namespace of numpy arrays or torch tensors, all of one kind."""
    from array_api_compat import array_namespace

    try:
        return array_namespace(*arrays)
    except TypeError:
        kinds = " and ".join(dict.fromkeys(type(array).__name__ for array in arrays))
        raise UsageError(
            f"{measure}: expected numpy arrays or torch tensors, all of one kind, got {kinds}; "
            "convert them first"
        ) from None


def checked(x: Array, name: str, least: int, measure: str) -> Array:
    """Features (n, d) as a float64 copy without gradient, or an error that names what is wrong.

    Parameters
    ----------
    x
        Features (n, d).
    name
        What to call them in errors: ``"x"``, or ``"site 'enc' of teacher"``.
    least
        Smallest n that the measure is defined for.
    measure
        Name of the measure, the first word of errors.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise UsageError(f"{measure}: {name} is a masked array; fill or leave out what is masked")
    if isinstance(x, np.matrix):
        x = np.asarray(x)
    xp = namespace(x, measure=measure)
    if x.ndim != 2 or x.shape[1] == 0:
        raise UsageError(
            f"{measure}: {name} must be (n, d) with d > 0, got shape {tuple(x.shape)}; "
            "reduce or flatten the rest"
        )
    if x.shape[0] < least:
        raise UsageError(f"{measure}: {name} has {x.shape[0]} rows; at least {least} samples are needed")
    if xp.isdtype(x.dtype, "complex floating"):
        raise UsageError(
            f"{measure}: {name} must hold real numbers, got {x.dtype}; give both parts as features"
        )
    try:
        x = xp.astype(x.detach() if hasattr(x, "detach") else x, xp.float64, copy=True)
    except (TypeError, ValueError):
        raise UsageError(f"{measure}: {name} must hold real numbers, got {x.dtype}; convert it") from None
    bad = xp.astype(~xp.all(xp.isfinite(x), axis=1), xp.int32)
    if count := int(xp.sum(bad)):
        row = int(xp.argmax(bad))
        raise UsageError(f"{measure}: row {row} of {name} holds NaN or infinity ({count} such rows)")
    return x


def centred(x: Array) -> Array:
    """Features minus their mean over the samples; in float64 a mean far above the spread costs no digits."""
    xp = namespace(x)
    # The mean of n equal numbers may differ from them by rounding; differences of equal numbers are zero.
    x = x - x[:1, :]
    return x - xp.mean(x, axis=0, keepdims=True)


def rescaled(x: Array) -> Array:
    """Largest entry 1, so that extreme features neither under- nor overflow; zeros stay as they are."""
    xp = namespace(x)
    largest = float(xp.max(xp.abs(x)))
    return x / largest if largest > 0 else x


def take(x: Array, order: NDArray[np.int64], axis: int = 0) -> Array:
    """Entries along an axis in the given order, on the device of x."""
    from array_api_compat import device

    xp = namespace(x)
    return xp.take(x, xp.asarray(order, device=device(x)), axis=axis)


def norm(x: Array) -> float:
    """Frobenius norm."""
    xp = namespace(x)
    return float(xp.sqrt(xp.sum(x * x)))


def same_rows(x: Array, y: Array, measure: str) -> None:
    """Refuse features of different numbers of samples."""
    if x.shape[0] != y.shape[0]:
        raise UsageError(
            f"{measure}: x has {x.shape[0]} rows and y {y.shape[0]}; row i of both must be the features of "
            "the same sample"
        )
