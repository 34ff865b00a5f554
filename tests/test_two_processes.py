"""Two processes train what one process trains, behind either launcher; nothing leaks between the networks."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SCRIPT = Path(__file__).parent / "two_process_helpers.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# --multi_gpu starts several processes also where there is no GPU; --cpu starts one, whatever it is told.
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip
TRAINED = (
    "teacher-sgd", "teacher-adam", "teacher-dropout", "teacher-layout",
    "student-sgd", "student-adam", "student-sid",
)  # fmt: skip
TIMEOUT = 300
"""Generous: other work may keep both cores busy."""


@functools.cache
def helpers() -> Any:
    spec = importlib.util.spec_from_file_location("two_process_helpers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def alone(name: str, accumulate: int = 1) -> tuple[dict[str, Tensor], Any]:
    """State and statistics of one process."""
    found: tuple[dict[str, Tensor], Any] = helpers().work(name, accumulate=accumulate)
    return found


def launched(launcher: list[str], folder: Path, *names: str) -> Path:
    """Folder of what both processes found."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    env |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    found = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(folder), ",".join(names)],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    return launched(TORCHRUN, tmp_path_factory.mktemp("torchrun"), "agreement", *TRAINED, "lost")


def results(folder: Path, name: str, accumulate: int = 1) -> list[tuple[dict[str, Tensor], Any]]:
    """State and statistics of both processes."""
    places = [folder / f"{name}-{accumulate}-{rank}" for rank in range(2)]
    return [
        (load_file(f"{place}.safetensors"), json.loads(Path(f"{place}.json").read_text())) for place in places
    ]


def assert_same_states(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        scale = float(theirs[name].abs().max())
        difference = float((value - theirs[name]).abs().max())
        assert difference <= tolerance * scale + 1e-8, (name, difference, scale)


def assert_same_stats(ours: Any, theirs: Any, tolerance: float) -> None:
    assert len(ours["stats"]) == len(theirs["stats"]) > 0
    for one, other in zip(ours["stats"], theirs["stats"], strict=True):
        assert set(one) == set(other)
        for name, value in one.items():
            assert value == pytest.approx(other[name], rel=tolerance, abs=tolerance), name


def test_processes_agree(found) -> None:
    for rank, (tensors, told) in enumerate(results(found, "agreement")):
        assert told["any"] == [False, True, True]
        assert told["mean"] == [0.5, 2.0]
        assert told["tell"] == {"rank": 0, "who": "räka"}
        assert told["main"] == (rank == 0)
        assert told["parts"] == [[4 * rank, 4 * rank + 4]]
        assert told["accelerate"]
        # Means over the processes; who has no gradient counts as zero; who has none anywhere keeps none.
        assert [float(tensors[key].mean()) for key in "0123"] == [-1.5, -1.5, -2.0, 0.0]
        assert told["without"] == [False, False, False, True]
    for rank, (_, told) in enumerate(results(found, "agreement", 2)):
        assert told["parts"] == [[4 * rank, 4 * rank + 2], [4 * rank + 2, 4 * rank + 4]]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("teacher-sgd", 1e-5),
        ("student-sgd", 1e-5),
        ("student-sid", 1e-5),
        ("teacher-adam", 1e-4),
        # The single process has its channels first.
        ("teacher-layout", 1e-4),
        ("student-adam", 1e-4),
    ],
)
def test_two_processes_train_what_one_trains(found, name: str, tolerance: float, accumulate: int) -> None:
    tensors, told = alone(name)
    for state, seen in results(found, name, accumulate):
        assert_same_states(state, tensors, tolerance)
        assert_same_stats(seen, told, tolerance)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_both_processes_hold_the_same_bits(found, accumulate: int) -> None:
    for name in TRAINED:
        (first, told), (second, also) = results(found, name, accumulate)
        assert told["stats"] == also["stats"], name
        assert [key for key in first if not torch.equal(first[key], second[key])] == [], name


def test_training_moves_everything(found) -> None:
    """Or equal weights would mean nothing."""
    start = helpers().shaken(helpers().build_denoiser(helpers().network(), 0.5, 0), 0)
    state, _ = results(found, "teacher-sgd")[0]
    moved = [
        float((state[f"net/net/{name}"] - value.detach()).norm() / value.detach().norm())
        for name, value in start.named_parameters()
    ]
    assert min(moved) > 1e-4


def test_dropout_depends_on_the_parts_alone(found) -> None:
    """Masks belong to parts of a batch: two processes draw what one process draws in two parts."""
    tensors, told = alone("teacher-dropout", 2)
    for state, seen in results(found, "teacher-dropout"):
        assert_same_states(state, tensors, 1e-5)
        assert_same_stats(seen, told, 1e-5)
    whole, _ = alone("teacher-dropout")
    with pytest.raises(AssertionError):
        assert_same_states(whole, tensors, 1e-3)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_gradient_reaches_the_frozen_network(found, accumulate: int) -> None:
    for name in ("student-sgd", "student-adam", "student-sid"):
        for _, told in results(found, name, accumulate):
            assert (told["leaks"], told["updates"]) == (0, 2 * helpers().STEPS), name
        told = alone(name, accumulate)[1]
        assert (told["leaks"], told["updates"]) == (0, 2 * helpers().STEPS), name


def test_the_leak_test_sees_a_leak(monkeypatch) -> None:
    """As where the ratio network is not frozen and the whole graph is walked backwards."""
    from featlens_trainers.directions import ratio

    def everything(outputs: Tensor, inputs: Tensor) -> tuple[Tensor | None]:
        outputs.backward()
        return (inputs.grad,)

    monkeypatch.setattr(ratio, "frozen", lambda *modules: contextlib.nullcontext())
    monkeypatch.setattr(torch.autograd, "grad", everything)
    assert helpers().work("student-sgd", accumulate=2)[1]["leaks"] > 0


@pytest.mark.slow
def test_accelerate_launch_does_the_same(tmp_path) -> None:
    launched(ACCELERATE, tmp_path, "student-sgd")
    tensors, told = alone("student-sgd")
    for state, seen in results(tmp_path, "student-sgd"):
        assert_same_states(state, tensors, 1e-5)
        assert_same_stats(seen, told, 1e-5)
        assert seen["accelerate"]


def test_loss_of_a_process_is_one_line(found) -> None:
    told = json.loads((found / "lost-1-0.json").read_text())
    assert told["error"].startswith("another process has ended, and says why itself; run the same command")
    assert "\n" not in told["error"]
