"""The options of training commands that say how they run, and the devices and launchers that they meet."""

from __future__ import annotations

import argparse

import pytest
import torch

from featlens.cli.parser import Parser
from featlens.errors import UsageError
from featlens_trainers.cli.running import add_running, engine_of
from featlens_trainers.engine import Engine, devices, make_engine


def parsed(*words: str) -> argparse.Namespace:
    parser = Parser(prog="featlens train", allow_abbrev=False)
    add_running(parser)
    return parser.parse_args(words)


def test_options_become_an_engine() -> None:
    with engine_of(parsed()) as engine:
        assert engine.settings() == Engine().settings()
    words = ("--precision", "bfloat16", "--accumulate", "4", "--channels-last", "--tracker", "tensorboard")
    with engine_of(parsed(*words)) as engine:
        assert (engine.precision, engine.accumulate, engine.channels_last) == ("bfloat16", 4, True)
        assert engine.trackers == ("tensorboard",)


def test_help_is_one_line_an_option() -> None:
    parser = Parser(prog="featlens train")
    add_running(parser)
    options = [action for action in parser._actions if action.dest != "help"]
    assert len(options) == 7
    assert all(action.help and len(action.help) < 70 and "\n" not in action.help for action in options)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "cuda"), "this torch sees no CUDA device"),
        (("--device", "gpu"), "unknown device 'gpu': "),
        (("--device", "mps"), "no Metal device"),
        (("--precision", "float16"), "did you mean 'bfloat16' or 'float32'"),
        (("--accumulate", "0"), "accumulate must be at least 1"),
        (("--threads", "0"), "threads must be at least 1"),
        (("--tracker", "tensorbord"), "did you mean 'tensorboard'"),
    ],
)
def test_bad_options_are_one_line(words: tuple[str, ...], message: str) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match=message) as caught:
        engine_of(parsed(*words))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_precision_that_the_launcher_was_told(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert engine_of(parsed()).precision == "bfloat16"
    assert engine_of(parsed("--precision", "float32")).precision == "float32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UsageError, match="float32 or bfloat16"):
        engine_of(parsed())


def test_half_told_processes_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="WORLD_SIZE is set, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"):
        make_engine()
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="FSDP; every process of featlens holds the whole network"):
        make_engine()


def test_gpus_are_counted(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.find_device("cuda", 1) == torch.device("cuda:1")
    assert devices.find_device("cuda:1") == torch.device("cuda:1")
    assert devices.find_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match="cuda:2 is needed, but this machine has 2 of them"):
        devices.find_device("cuda", 2)
    with pytest.raises(UsageError, match="cuda:1 names one GPU, but several processes"):
        devices.find_device("cuda:1", 0)
