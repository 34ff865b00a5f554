"""The names that a pickle of EDM refers to, and what each builds here.

The list is fixed. Nothing in it is the function of that name: ``collections.OrderedDict`` builds a plain
dict, ``torch._utils._rebuild_tensor_v2`` notes where values lie, and classes of networks stay inert records.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from featlens_trainers.convert.machine import Global, Inspection, Instance, scalar
from featlens_trainers.convert.storages import StoredTensor, read_storage, stored_tensor

__all__ = ["edm_meanings"]

_CLASSES = {
    "training.networks": (
        "EDMPrecond VPPrecond VEPrecond iDDPMPrecond SongUNet DhariwalUNet UNetBlock Conv2d Linear GroupNorm "
        "PositionalEmbedding FourierEmbedding"
    ),
    "training.networks_edm2": "Precond UNet Block MPConv MPFourier",
    "training.loss": "EDMLoss VPLoss VELoss",
    "training.augment": "AugmentPipe",
    "torch.nn.modules.container": "ModuleDict ModuleList Sequential",
    "torch.nn.modules.linear": "Linear Identity",
    "torch.nn.modules.conv": "Conv2d",
    "torch.nn.modules.normalization": "GroupNorm",
    "torch.nn.modules.dropout": "Dropout",
    "torch.nn.modules.activation": "SiLU",
    "torch": "device Size float16 float32 float64 bfloat16 int64 int32 uint8 bool",
    "builtins": "object",
    "__builtin__": "object",
}
"""What only ever describes: instances of these stay records."""

_SIMPLE = re.compile(r"[<>|=]?([biufU?]\d{0,3})")
_PERSISTENT = "persistence"
LONGEST_SCALAR = 4_000


def edm_meanings(inspection: Inspection) -> dict[str, Callable[..., Any] | None]:
    """Table for :class:`featlens_trainers.convert.machine.Machine`, by dotted name."""

    def copied(meaning: Callable[..., Any]) -> Callable[..., Any]:
        """The meaning, of which what it copies counts."""

        def counted(*arguments: Any) -> Any:
            for argument in arguments:
                inspection.hold(len(argument))
            return meaning(*arguments)

        return counted

    table: dict[str, Callable[..., Any] | None] = {
        f"{module}.{name}": None for module, names in _CLASSES.items() for name in names.split()
    }
    table |= {
        "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
        "dnnlib.util.EasyDict": copied(_dict),
        "collections.OrderedDict": copied(_dict),
        "torch._utils._rebuild_tensor_v2": stored_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch.storage._load_from_bytes": lambda blob: read_storage(blob, inspection),
        "_codecs.encode": copied(_encoded),
        "numpy.dtype": _dtype,
        "numpy.ndarray": None,
    }
    for module in ("builtins", "__builtin__"):
        for name, meaning in (("set", _set), ("dict", _dict), ("list", _list)):
            table[f"{module}.{name}"] = copied(meaning)
    for module in ("copyreg", "copy_reg"):
        table[f"{module}._reconstructor"] = _reconstructed
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        table[f"{module}._frombuffer"] = _array_from_bytes
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        table |= {f"{module}.scalar": _scalar, f"{module}._reconstruct": _array}
    return table


def _persistent(meta: Any) -> Instance:
    """Object of EDM's persistence: its class by name, its attributes; its source stays text."""
    name = meta["class_name"]
    if meta.get("type") != "class" or not isinstance(name, str):
        raise ValueError("a persistent object that is no class")
    return Instance(Global(_PERSISTENT, name), (), meta["state"])


def _reconstructed(kind: Any, base: Any, state: Any) -> Instance:
    if not isinstance(kind, Global):
        raise TypeError("an object without class")
    return Instance(kind)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    return {scalar(key): value for key, value in pairs}


def _list(entries: Any = ()) -> list[Any]:
    if not isinstance(entries, list | tuple):
        raise TypeError("a list of something else")
    return list(entries)


def _set(entries: Any = ()) -> set[Any]:
    return {scalar(entry) for entry in entries}


def _parameter(data: Any, *rest: Any) -> StoredTensor:
    if not isinstance(data, StoredTensor):
        raise TypeError("a parameter without values")
    return data


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    # How bytes are written by protocols that have none.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise TypeError("bytes in an unknown encoding")
    return text.encode("latin1")


def _dtype(name: Any, *rest: Any) -> Instance:
    if not isinstance(name, str) or not _SIMPLE.fullmatch(name):
        raise TypeError("values of numpy that are not plain numbers")
    return Instance(Global("numpy", "dtype"), (name,))


def _array(kind: Any, shape: Any, letter: Any) -> Instance:
    return Instance(Global("numpy", "ndarray"))


def _array_from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> Instance:
    return Instance(Global("numpy", "ndarray"))


def _scalar(dtype: Any, data: Any) -> Any:
    """Plain number of a scalar of numpy, as EDM's constructor arguments hold them."""
    if not isinstance(dtype, Instance) or dtype.kind.dotted != "numpy.dtype" or not isinstance(data, bytes):
        raise TypeError("a scalar without values")
    if len(data) > LONGEST_SCALAR:
        raise ValueError("a scalar of many values")
    found = _SIMPLE.fullmatch(dtype.arguments[0])
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    if found is None or order not in ("<", ">", "|", "="):
        raise TypeError("a scalar of an unknown type")
    (value,) = np.frombuffer(data, dtype=np.dtype(f"{order}{found[1]}")).tolist()
    return value
