"""Snapshots: complete in themselves, never a pickle, and no damage goes unnoticed."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from featlens.denoiser import EDMDenoiser, weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens_trainers.networks import (
    ADMConfig,
    DiTConfig,
    NetworkConfig,
    RatioConfig,
    UNetConfig,
    build_denoiser,
    build_ratio,
)
from featlens_trainers.snapshots import (
    load_denoiser,
    load_ratio,
    load_weights,
    read_tensors,
    save_denoiser,
    save_ratio,
    write_tensors,
)

CONFIG = UNetConfig(channels=8, labels=2, dropout=0.1)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "ema.safetensors"
    save_denoiser(path, build_denoiser(CONFIG, 0.75, 3), sigma_init=2.5)
    return path


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.arange(6.0).reshape(2, 3),
        "b/c": torch.ones((), dtype=torch.int64),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "half": torch.arange(3).to(torch.bfloat16),
    }


# --- round trips --------------------------------------------------------------------------------------------


def test_tensors_and_description_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, tensors(), {"kind": "state", "images": 64, "note": "sigma über 0"})
    held, about = read_tensors(path)
    assert about == {"kind": "state", "images": 64, "note": "sigma über 0"}
    assert set(held) == set(tensors())
    for name, tensor in tensors().items():
        assert held[name].dtype == tensor.dtype
        assert torch.equal(held[name], tensor)


def test_two_names_of_one_tensor_are_both_kept(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    write_tensors(tmp_path / "x", {"a": shared, "b": shared, "part": shared[1:]}, {})
    held, _ = read_tensors(tmp_path / "x")
    assert torch.equal(held["b"], shared)
    assert torch.equal(held["part"], shared[1:])


def test_a_denoiser_is_loadable_from_the_file_alone(snapshot: Path) -> None:
    denoiser, about = load_denoiser(snapshot)
    original = build_denoiser(CONFIG, 0.75, 3)
    assert weights_digest(denoiser) == weights_digest(original)
    assert denoiser.network.config == CONFIG
    assert (denoiser.sigma_data, denoiser.num_labels, denoiser.sample_shape) == (0.75, 2, (1, 8, 8))
    assert about["sigma_init"] == 2.5
    assert not any(module.training for module in denoiser.modules())
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    assert torch.equal(denoiser(x, sigma, labels), original.eval()(x, sigma, labels))


def test_loading_leaves_the_global_generator_alone(snapshot: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load_denoiser(snapshot)
    assert torch.equal(torch.rand(1), expected)


def test_the_file_is_plain_safetensors_with_a_json_header(snapshot: Path) -> None:
    blob = snapshot.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    header = json.loads(blob[8 : 8 + length])
    about = json.loads(header["__metadata__"]["featlens"])
    assert about["kind"] == "denoiser"
    assert about["network"]["channels"] == 8
    assert "network.enc.8x8_conv.weight" in header
    assert set(safetensors.torch.load_file(snapshot)) == set(header) - {"__metadata__"}


# --- damage -------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(6.0), "b": torch.ones(2)}, {"kind": "state", "images": 64})
    good = path.read_bytes()
    numbers = np.random.default_rng(0)
    header = 8 + struct.unpack("<Q", good[:8])[0]
    unnoticed = []
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << int(numbers.integers(8))
        path.write_bytes(bad)
        try:
            held, about = read_tensors(path)
        except FeatlensError as error:
            assert "\n" not in str(error)
            continue
        if about != {"kind": "state", "images": 64} or held["a"].tolist() != list(range(6)):
            unnoticed.append((place, place < header))
    assert not unnoticed


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 20, 200, -1])
def test_a_cut_file_is_refused(snapshot: Path, kept: int) -> None:
    snapshot.write_bytes(snapshot.read_bytes()[:kept])
    with pytest.raises(FeatlensError, match="damaged or no safetensors file"):
        load_denoiser(snapshot)


def test_other_files_are_refused_by_what_they_are(tmp_path: Path, snapshot: Path) -> None:
    with pytest.raises(FeatlensError, match="no file"):
        read_tensors(tmp_path / "nothing")
    with pytest.raises(FeatlensError, match="no file"):
        read_tensors(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, foreign)
    with pytest.raises(FeatlensError, match="of another program"):
        read_tensors(foreign)
    pickled = tmp_path / "model.pt"
    torch.save({"a": torch.ones(1)}, pickled)
    with pytest.raises(FeatlensError, match="no safetensors file"):
        read_tensors(pickled)
    state = tmp_path / "state.safetensors"
    write_tensors(state, {"a": torch.ones(1)}, {"kind": "state"})
    with pytest.raises(FeatlensError, match="holds a 'state', expected a denoiser"):
        load_denoiser(state)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    for change, named in (
        ({"weight": torch.ones(3, 3), "bias": torch.ones(3)}, "weight"),
        ({"weight": torch.ones(3, 2)}, "bias"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "extra": torch.ones(1)}, "extra"),
    ):
        with pytest.raises(FeatlensError, match=f"here is .*: 1 of [23] tensors differ: '{named}' is"):
            load_weights(layer, change, "here")


def test_another_architecture_is_said_with_the_shapes_of_the_first_three_tensors(snapshot: Path) -> None:
    tensors, about = read_tensors(snapshot)
    about["network"]["channels"] = 16
    del tensors["network.map_label.weight"]
    write_tensors(snapshot, tensors, about)
    with pytest.raises(FeatlensError) as caught:
        load_denoiser(snapshot)
    message = str(caught.value)
    assert message.startswith(f"{snapshot} is of another architecture: ")
    assert "'network.map_label.weight' is missing there, (16, 2) here; " in message
    assert "'network.map_layer0.weight' is (32, 8) there, (64, 16) here; ...; use the settings" in message
    assert message.count(" there, ") == 3
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"kind": "vit"}}, "describes no network of this featlens: .*unknown network.kind 'vit'"),
        ({"network": {"widht": 3}}, "describes no network of this featlens: .*unknown key 'network.widht'"),
        ({"network": {"resolution": 7}}, "describes no network of this featlens: .*resolution 7"),
        ({"network": 3}, "describes no network of this featlens: .*must be a table"),
        ({"network": {"channels": 65_536}}, "is of another architecture"),
        ({"sigma_data": "wide"}, "has sigma_data 'wide', expected a number above 0"),
        ({"sigma_data": None}, "has sigma_data None, expected a number above 0"),
    ],
)
def test_a_description_that_is_wrong_is_refused_before_memory_is_asked_for(
    snapshot: Path, change: dict, message: str
) -> None:
    tensors, about = read_tensors(snapshot)
    write_tensors(snapshot, tensors, {**about, **change})
    with pytest.raises(FeatlensError, match=message) as caught:
        load_denoiser(snapshot)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)


# --- kinds --------------------------------------------------------------------------------------------------

KINDS = [
    CONFIG,
    ADMConfig(8, 1, 1, 8, (1, 2), 1, (4,), labels=2, channels_per_head=8),
    DiTConfig(width=16, depth=3, heads=2, labels=2, augment_labels=9),
]


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_denoisers_of_every_kind_come_back(tmp_path: Path, config: NetworkConfig) -> None:
    original = build_denoiser(config, 0.75, 3).eval()
    save_denoiser(tmp_path / "x.safetensors", original, sigma_init=2.5)
    denoiser, about = load_denoiser(tmp_path / "x.safetensors")
    assert about["network"]["kind"] == config.kind
    assert denoiser.network.config == config
    assert weights_digest(denoiser) == weights_digest(original)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    assert torch.equal(denoiser(x, sigma, labels), original(x, sigma, labels))


@pytest.mark.parametrize(
    "settings", [RatioConfig(), RatioConfig(width=0.5), RatioConfig("fake_score", dropout=0.2)]
)
@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_ratio_networks_of_every_kind_come_back(
    tmp_path: Path, config: NetworkConfig, settings: RatioConfig
) -> None:
    original = build_ratio(config, settings, 0.75).eval()
    save_ratio(tmp_path / "x.safetensors", original, images=64)
    ratio, about = load_ratio(tmp_path / "x.safetensors")
    assert type(ratio) is type(original)
    assert (ratio.config, ratio.sigma_data, about["images"]) == (original.config, 0.75, 64)
    assert weights_digest(ratio) == weights_digest(original)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.ones(2), torch.tensor([0, 1])
    assert torch.equal(ratio(x, sigma, labels), original(x, sigma, labels))
    with pytest.raises(FeatlensError, match="holds a 'ratio', expected a denoiser"):
        load_denoiser(tmp_path / "x.safetensors")


def test_a_ratio_network_of_a_kind_to_come_is_refused(tmp_path: Path) -> None:
    save_ratio(tmp_path / "x.safetensors", build_ratio(CONFIG))
    tensors, about = read_tensors(tmp_path / "x.safetensors")
    write_tensors(tmp_path / "x.safetensors", tensors, {**about, "ratio": "of tomorrow"})
    with pytest.raises(FeatlensError, match="of kind 'of tomorrow', expected one of encoder, fake_score"):
        load_ratio(tmp_path / "x.safetensors")


def test_a_snapshot_from_before_there_were_kinds_still_loads(snapshot: Path) -> None:
    tensors, about = read_tensors(snapshot)
    del about["network"]["kind"]
    write_tensors(snapshot, tensors, about)
    assert load_denoiser(snapshot)[0].network.config == CONFIG


def test_a_foreign_network_has_no_snapshot(tmp_path: Path) -> None:
    foreign = EDMDenoiser(torch.nn.Conv2d(1, 1, 1), (1, 8, 8))
    with pytest.raises(UsageError, match=r"holds a network of featlens .*got a Conv2d; keep it"):
        save_denoiser(tmp_path / "x.safetensors", foreign)
    assert list(tmp_path.iterdir()) == []


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_failed_write_leaves_the_file_that_was_there(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before = snapshot.read_bytes()

    def broken(held: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(number, "no")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    expected = {errno.ENOSPC: "the disk is full", errno.EROFS: "read-only"}[number]
    with pytest.raises(FeatlensError, match=expected):
        write_tensors(snapshot, tensors(), {})
    assert snapshot.read_bytes() == before
    assert [path.name for path in snapshot.parent.iterdir()] == [snapshot.name]


def test_errors_of_the_library_itself_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(held: dict, path: Path, metadata: dict) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left\n on device")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(FeatlensError, match="No space left on device"):
        write_tensors(tmp_path / "x", tensors(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatlensError, match="no such file or folder"):
        write_tensors(tmp_path / "nowhere" / "x", tensors(), {})
