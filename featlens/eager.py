"""Compiled code run as plain Python for a while: hooks do not fire inside what was compiled before."""

from __future__ import annotations

import sys
import threading
from typing import Any

import torch
from torch import nn

from featlens.errors import FeatlensError

__all__ = ["hold_eager", "release_eager"]

_lock = threading.Lock()
_holders = 0
_stance: Any = None


def _is_compiled(module: nn.Module) -> bool:
    return any(
        type(child).__name__ == "OptimizedModule" or getattr(child, "_compiled_call_impl", None) is not None
        for child in module.modules()
    )


def hold_eager(module: nn.Module) -> None:
    """Have ``torch.compile``d code run eagerly in this process until every holder has let go.

    Free where nothing was compiled. Compiled code is kept, and used again afterwards without recompilation.

    Raises
    ------
    FeatlensError
        If ``module`` is compiled and this torch (below 2.6) cannot be told to run it eagerly.
    """
    global _holders, _stance
    with _lock:
        # Blocks may end in another order than they began, in generators: the last one restores.
        if _stance is None and "torch._dynamo" in sys.modules:
            if hasattr(torch.compiler, "set_stance"):
                _stance = torch.compiler.set_stance("force_eager")
            elif _is_compiled(module):
                raise FeatlensError(
                    f"capture: hooks inside compiled modules need torch 2.6, this is {torch.__version__}; "
                    "capture the module that was given to torch.compile"
                )
        _holders += 1


def release_eager() -> None:
    """Let go of what :func:`hold_eager` asked for."""
    global _holders, _stance
    with _lock:
        _holders -= 1
        if not _holders and _stance is not None:
            _stance.__exit__(None, None, None)
            _stance = None
