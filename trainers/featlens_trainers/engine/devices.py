"""Devices by name, checked against what this machine has."""

from __future__ import annotations

import torch

from featlens.errors import UsageError, choices_hint

__all__ = ["PRECISIONS", "check_precision", "find_device"]

KINDS = ("cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16")


def find_device(name: str | torch.device, local: int | None = None) -> torch.device:
    """Device ``name`` of this process, which is process ``local`` of those that share this machine.

    ``"cuda"`` is the GPU of that number, so that each process has its own.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in KINDS:
        known = ("cpu", "cuda", "cuda:0", "mps")
        raise UsageError(f"unknown device {str(name)!r}: {choices_hint(str(name), known)}")
    if device.type == "cuda":
        return _gpu(device, local)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("device mps: this torch sees no Metal device; use --device cpu")
        if local is not None:
            raise UsageError("device mps: several processes cannot share it; start one, or use --device cpu")
    return device


def _gpu(device: torch.device, local: int | None) -> torch.device:
    if not torch.cuda.is_available():
        raise UsageError(
            f"device {device}: this torch sees no CUDA device; use --device cpu, or install a CUDA build "
            "of torch"
        )
    if local is not None:
        if device.index is not None:
            raise UsageError(
                f"device {device} names one GPU, but several processes were started; use --device cuda, "
                "which gives each process its own, or start one process"
            )
        device = torch.device("cuda", local)
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise UsageError(
            f"device {device} is needed, but this machine has {count} of them; use cuda:0 to "
            f"cuda:{count - 1}, and start at most {count} processes"
        )
    return device


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse a precision that is unknown, or that ``device`` cannot compute in."""
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}: {choices_hint(precision, PRECISIONS)}")
    if precision == "bfloat16" and not _has_bfloat16(device):
        raise UsageError(f"precision bfloat16: {device} does not compute in it; use --precision float32")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        # Emulation exists on older GPUs, but is slower than float32.
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        one = torch.ones(1, 1, device=device, dtype=torch.bfloat16)
        return float((one @ one).item()) == 1.0
    except (RuntimeError, TypeError):
        return False
