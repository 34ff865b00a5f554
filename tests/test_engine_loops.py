"""The real loops under every option of the engine: what stays equal stays equal."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from featlens_trainers.engine import Engine

LOOPS = ("teacher-sgd", "student-sgd", "student-sid")


@functools.cache
def helpers() -> Any:
    place = Path(__file__).parent / "two_process_helpers.py"
    spec = importlib.util.spec_from_file_location("two_process_helpers", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ran(name: str, **options: Any) -> tuple[dict[str, Tensor], Any]:
    with Engine(**options) as engine:
        out: tuple[dict[str, Tensor], Any] = helpers().WORK[name](engine)
    return out


@functools.cache
def plain(name: str) -> tuple[dict[str, Tensor], Any]:
    return ran(name)


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Largest difference, relative to the largest number of the tensor."""
    assert set(ours) == set(theirs)
    return max(
        float((value - theirs[name]).abs().max() / theirs[name].abs().max().clamp_min(1e-6))
        for name, value in ours.items()
    )


@pytest.mark.parametrize("name", LOOPS)
def test_channels_last_and_parts_give_the_same(name: str) -> None:
    tensors, told = ran(name, channels_last=True, accumulate=4)
    assert apart(tensors, plain(name)[0]) < 2e-5
    assert told["leaks"] == 0
    for one, other in zip(told["stats"], plain(name)[1]["stats"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["teacher-sgd", "student-sgd"])
def test_compiled_loop_gives_the_same(name: str) -> None:
    tensors, told = ran(name, compile="eager")
    assert apart(tensors, plain(name)[0]) < 2e-5
    assert told["leaks"] == 0
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LOOPS)
def test_bfloat16_trains_float32_weights(name: str) -> None:
    tensors, told = ran(name, precision="bfloat16")
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    assert told["leaks"] == 0
    assert all(torch.isfinite(value).all() for value in tensors.values())
    # Near the float32 run, and not the same: it did compute in bfloat16.
    first, second = told["stats"][0], plain(name)[1]["stats"][0]
    assert first == pytest.approx(second, rel=0.1, abs=0.05)
    assert first != second
