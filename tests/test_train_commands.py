"""featlens train and distill on other data, losses, starts and processes, with good and with bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featlens
from featlens.cli import main
from featlens_trainers.presets import PRESETS, overrides_of, resolve_study
from featlens_trainers.runs import read_run, read_stats
from featlens_trainers.snapshots import load_ratio, read_tensors

SHAPES = """
preset = "shapes32"
data = "shapes16"
train_images = 128

[network]
resolution = 16
channels = 8
channel_mult = [1, 1]
blocks = 1
attention_resolutions = [8]
labels = 5

[teacher]
images = 96
batch = 16
ramp_images = 32
ema_half_lives = [64]
ema_powers = [0.1]
snapshot_images = 32

[regression]
images = 64
batch = 16
ramp_images = 32
bank = 32
heun_steps = 2

[body]
images = 64
batch = 16

[distill]
images = 64
batch = 16

[classifier]
images = 256
batch = 64
features = 8

[evaluation]
images = 32
times = 2
heun_steps = 2
grid = 2
reference = 64

[diagnostics]
sigmas = [0.5, 2.5]
images = 16
bank = 16

[[custom]]
name = "norms_and_coarse"
rules = [{match = "role:norm", take = "teacher"}, {match = "enc.8x8_*", take = "interpolate", amount = 0.5}]
"""

NAME = "student-teacher-random-reverse_kl-s0"

Call = Callable[..., str]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "shapes.toml"
    path.write_text(SHAPES)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A conditional teacher of shapes, for the tests of this module."""
    out = tmp_path_factory.mktemp("runs") / "shapes"
    assert main(["train", str(shapes), "-o", str(out), "--json"]) == 0
    return out


# --- other data ---------------------------------------------------------------------------------------------


def test_a_conditional_teacher_of_shapes_keeps_all_its_averages(folder: Path) -> None:
    assert read_run(folder / "teacher")["status"] == "done"
    kept = {
        f"{path.parent.name}/{path.name}"
        for path in (folder / "teacher" / "snapshots").rglob("*.safetensors")
    }
    names = ("ema", "ema-64", "ema-power0.1")
    assert kept == {f"img-{images:08d}/{name}.safetensors" for images in (32, 64, 96) for name in names}
    teacher = featlens.load(folder / "teacher")
    assert (teacher.sample_shape, teacher.num_labels) == ((3, 16, 16), 5)


@pytest.mark.parametrize(
    ("init", "loss"),
    [
        ("teacher", "js"),
        ("decoder_only", "reverse_kl"),
        ("map_regressed_ode", "hellinger"),
        ("band_sigma", "softened_reverse_kl"),
        ("classifier_body", "jeffreys"),
        ("resolution:8", "forward_kl"),
        ("norms_and_coarse", "js"),
        ("random", "diff_instruct"),
        ("teacher", "sid"),
        ("teacher", "dmd2"),
    ],
)
def test_students_of_every_loss_from_many_starts(
    folder: Path, shapes: Path, call: Call, init: str, loss: str
) -> None:
    words = ("distill", shapes, "-o", folder, "--init", init, "--loss", loss, "--ratio-init", "teacher")
    record = json.loads(call(*words, "--json"))
    assert record["status"] == "done"
    assert {"frechet", "kid"} <= set(record["info"]["quality"])
    name = f"student-{init}-teacher-{loss}-s0".replace(":", "_")
    lines = [line for line in read_stats(folder / name) if "frechet" in line]
    assert [line["images"] for line in lines] == [0, 32, 64]
    assert all(line["diversity"] > 0 for line in lines)
    start = json.loads((folder / name / "initialisation.json").read_text())
    assert set(start) == {
        "student",
        "ratio" if loss not in ("diff_instruct", "sid", "dmd2") else "fake_score",
    }
    if "ratio" in start:
        assert lines[-1]["bins"]["sigma"] == [0.5, 2.5]
        ratio, _ = load_ratio(folder / name / "snapshots" / "img-00000064" / "ratio.safetensors")
        logits = ratio(torch.zeros(2, 3, 16, 16), torch.ones(2), torch.tensor([0, 1]))
        assert logits.shape == (2,)


def test_the_head_can_sit_on_a_fake_score(shapes: Path, tmp_path: Path, call: Call) -> None:
    """The whole way in a folder of its own, because the ratio network is a setting of the study."""
    changes = (
        "--set",
        "distill.ratio.kind=fake_score",
        "--set",
        "teacher.images=32",
        "--ratio-init",
        "teacher",
    )
    record = json.loads(
        call("distill", shapes, "-o", tmp_path / "new", *changes, "--ratio-init", "teacher", "--json")
    )
    assert record["status"] == "done"
    assert record["info"]["origins"]["ratio"]["teacher"] > 10


def test_a_finished_run_is_left_as_it_is(folder: Path, shapes: Path, call: Call, file_digests: Any) -> None:
    before = file_digests(folder / "teacher")
    call("train", shapes, "-o", folder)
    assert file_digests(folder / "teacher") == before


def test_labels_that_do_not_fit_are_refused(shapes: Path, tmp_path: Path, fail: Any) -> None:
    words = ("train", shapes, "-o", tmp_path / "new")
    assert "has 5 classes, network.labels is 3" in fail(2, *words, "--set", "network.labels=3")
    assert "nowhere.npz" in fail(2, *words, "--data", tmp_path / "nowhere.npz")
    assert not (tmp_path / "new").exists()


def test_images_without_labels_train_without_a_verdict_on_quality(
    shapes: Path, tmp_path: Path, call: Call, fail: Any
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    out, data = tmp_path / "new", ("--data", tmp_path / "images.npy", "--set", "train_images=40")
    where = ("-o", out, *data, "--set", "network.labels=0")
    assert call("distill", shapes, *where).splitlines()[-1] == str(out / NAME)
    lines = [line for line in read_stats(out / NAME) if "diversity" in line]
    assert [line["images"] for line in lines] == [0, 32, 64]
    assert not any("frechet" in line for line in lines)
    assert (read_run(out / NAME)["info"]["quality"], (out / "classifier").exists()) == ({}, False)
    assert "has no labels" in fail(2, "train", shapes, "-o", tmp_path / "other", *data)


def test_quality_can_be_measured_in_features_of_ones_own(shapes: Path, tmp_path: Path, call: Call) -> None:
    (tmp_path / "mine.py").write_text("def features(x):\n    return x.flatten(1)[:, :7].double()\n")
    extractor = f"evaluation.extractor=python:{tmp_path / 'mine.py'}:features"
    record = json.loads(call("train", shapes, "-o", tmp_path / "new", "--set", extractor, "--json"))
    assert record["info"]["quality"]["heun"]["frechet"] > 0
    assert "extractor" in record["config"] and "classifier" not in record["config"]


def test_a_teacher_of_another_architecture_is_refused_before_anything_is_trained(
    folder: Path, shapes: Path, tmp_path: Path, fail: Any
) -> None:
    words = ("distill", shapes, "-o", tmp_path / "new", "--teacher", folder / "teacher")
    line = fail(2, *words, "--set", "network.channels=16")
    assert "another architecture than the students: network.channels: 8 there, 16 asked for" in line
    assert not (tmp_path / "new").exists()


def test_data_of_another_size_is_refused(tmp_path: Path, fail: Any) -> None:
    line = fail(2, "train", "shapes32", "--data", "digits", "-o", tmp_path / "new")
    assert "digits have 1 channel and resolution 8" in line
    assert not (tmp_path / "new").exists()


# --- settings -----------------------------------------------------------------------------------------------


def test_set_changes_one_setting_and_knows_its_names(tmp_path: Path, call: Call, fail: Any) -> None:
    said = call("train", "digits", "--set", "teacher.lr=0.5", "--set", "network.channels=8", "--dry-run")
    assert "lr = 0.5" in said and "channels = 8" in said
    line = fail(2, "train", "digits", "--set", "teacher.lrr=0.5")
    assert "unknown key 'teacher.lrr': did you mean 'lr'?" in line
    assert "expected section.key=value" in fail(2, "train", "digits", "--set", "teacher.lr")
    assert overrides_of(["a.b=[1, 2]", "a.c=word"]) == {"a": {"b": [1, 2], "c": "word"}}


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_says_its_sizes_without_data(preset: str, call: Call) -> None:
    found = json.loads(call("train", preset, "--dry-run", "--json"))
    sizes = found["sizes"]
    wanted = {"cifar10": 55_733_891, "cifar10-cond": 55_735_299}
    if preset in wanted:
        assert sizes["teacher and student"] == wanted[preset]
    if preset == "imagenet64":
        assert 295.5e6 < sizes["teacher and student"] < 296.5e6
    assert 0 < sizes["ratio network"] < sizes["teacher and student"]
    assert resolve_study(preset).preset == preset


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("cifar10-cond", []), ("imagenet64", ["network.channels=32", "network.blocks=1"])],
)
def test_one_real_step_needs_no_data(call: Call, tmp_path: Path, preset: str, changes: list[str]) -> None:
    """CIFAR-10's network at its full size; that of ImageNet takes 10 GB and is made smaller here."""
    words = [word for change in changes for word in ("--set", change)]
    where = ("-o", tmp_path / "new", "--json")
    found = json.loads(call("train", preset, *words, "--one-step", "--step-batch", "1", *where))["step"]
    assert set(found) == {"teacher", "student"}
    assert all(step["loss"] > 0 and step["seconds"] > 0 and step["memory_mb"] > 0 for step in found.values())
    assert not (tmp_path / "new").exists()


def test_one_step_of_no_image_is_refused(fail: Any) -> None:
    assert "(--step-batch) must be at least 1, got 0" in fail(
        2, "train", "digits", "--one-step", "--step-batch", "0"
    )


# --- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_sigterm_saves_and_ends_well(shapes: Path, folder: Path, tmp_path: Path) -> None:
    """Stopped by SIGTERM and run again, a run ends with the weights of one left alone."""
    out = tmp_path / "stopped"
    words = [sys.executable, "-m", "featlens", "train", str(shapes), "-o", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    slow = [*words, "--threads", "1"]
    process = subprocess.Popen(slow, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list((out / "teacher" / "snapshots").glob("img-00000032/*")) and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    record = read_run(out / "teacher")
    if record["status"] != "done":
        assert "the state is saved; run the same command again to continue" in said
        assert list((out / "teacher" / "state").glob("img-*.safetensors"))
    assert main([*words[3:], "--json"]) == 0
    first, again = (read_run(place / "teacher")["info"] for place in (folder, out))
    assert first["weights_digest"] == again["weights_digest"]
    assert first["quality"] == again["quality"]
    for name in ("ema-64", "ema-power0.1"):
        one, other = (
            read_tensors(place / "teacher" / "snapshots" / "img-00000096" / f"{name}.safetensors")[0]
            for place in (folder, out)
        )
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert read_stats(folder / "teacher") == read_stats(out / "teacher")


def test_two_processes_train_what_one_trains(shapes: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "featlens", "train", str(shapes), "-o", str(out), "--threads", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [*launch, *words], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = ([line["loss"] for line in read_stats(place / "teacher")] for place in (folder, out))
    assert one == pytest.approx(two, rel=1e-3)
    record = read_run(out / "teacher")
    assert record["info"]["running"]["processes"] == 2
