"""Pickles of EDM: the networks in them bit for bit, and what is no such network by name."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

import featlens
from featlens.denoiser import weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens.testing import check_denoiser
from featlens_trainers.convert import read_edm
from tests.convert_helpers import ADM, UNET, Persistent, denoiser_of, edm_modules, write_edm

CONFIGS = {"unet": UNET, "adm": ADM}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("style", ["persistent", "class", "old"])
@pytest.mark.parametrize("family", CONFIGS)
def test_every_style_and_protocol_gives_the_network_bit_for_bit(tmp_path, family, style, protocol):
    given = denoiser_of(CONFIGS[family])
    released = read_edm(write_edm(tmp_path / "network.pkl", given, protocol, style=style))
    assert released.config == CONFIGS[family]
    found = released.denoiser()
    assert weights_digest(found) == weights_digest(given)
    x, sigma, labels = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 80.0]), torch.tensor([0, 3])
    assert torch.equal(found(x, sigma, labels), given(x, sigma, labels))
    assert not found.training


@pytest.mark.parametrize("family", CONFIGS)
def test_without_arguments_the_size_is_read_off_the_tensors(tmp_path, family):
    given = denoiser_of(CONFIGS[family], sigma_data=0.7)
    released = read_edm(write_edm(tmp_path / "x", given, arguments=False))
    assert released.config == CONFIGS[family]
    assert released.sigma_data == 0.7


def test_the_origin_is_kept(tmp_path):
    origin = read_edm(write_edm(tmp_path / "x.pkl", denoiser_of(UNET))).origin
    assert origin["file"] == "x.pkl" and origin["entry"] == "ema"
    assert origin["classes"] == ["EDMPrecond", "SongUNet"]
    assert origin["without_counterpart"] == {"use_fp16": False, "sigma_min": 0, "label_dropout": 0.0}
    assert len(origin["sha256"]) == 64


def test_a_file_with_the_network_alone_and_one_under_net(tmp_path):
    given = denoiser_of(UNET)
    alone = read_edm(write_edm(tmp_path / "alone", given, key="ema"))
    assert weights_digest(alone.denoiser()) == weights_digest(given)


def test_half_precision_becomes_float32_exactly(tmp_path):
    given = denoiser_of(UNET).half()
    found = read_edm(write_edm(tmp_path / "half", given)).denoiser()
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert weights_digest(found.half()) == weights_digest(given)


def test_featlens_load_reads_the_file_itself(tmp_path):
    given = denoiser_of(UNET)
    path = write_edm(tmp_path / "teacher", given)
    from featlens_trainers.convert.adapter import load_edm

    state = torch.get_rng_state()
    model = load_edm(str(path), "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert model is not None and model.sigma_init is None
    check_denoiser(model)
    assert weights_digest(featlens.load(path)) == weights_digest(given)
    assert featlens.load(path, sigma_init=2.5).sigma_init == 2.5
    with pytest.raises(UsageError, match=r"option sigma_init: expected a number above 0 such as 2.5, got -1"):
        featlens.load(path, sigma_init=-1)


# --- networks that are not ours -----------------------------------------------------------------------------


def spoilt(tmp_path, change, config=UNET, **options):
    path = write_edm(tmp_path / "spoilt.pkl", denoiser_of(config), change=change, **options)
    with pytest.raises(FeatlensError) as caught:
        read_edm(path).denoiser()
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable() and len(line) < len(str(path)) + 500
    return line.removeprefix(f"{path}: ")


def setting(where, name, value, part=None):
    def change(path, kind, state):
        if path == where:
            (state if part is None else state[part])[name] = value

    return change


def renamed(where, name):
    return lambda path, kind, state: name if path == where else None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            renamed("wrapper", "VPPrecond"),
            r"expected a network with EDMPrecond, found VPPrecond \(variance-pres",
        ),
        (renamed("wrapper", "Precond"), r"found Precond \(EDM2's preconditioning and magnitude-preserving"),
        (renamed("", "SomethingElse"), "expected a SongUNet or DhariwalUNet, found a SomethingElse"),
        (renamed("map_noise", "FourierEmbedding"), "embedding_type fourier is not supported"),
        (
            setting("", "encoder_type", "residual", "_init_kwargs"),
            r"encoder_type 'residual' is not supported",
        ),
        (setting("", "decoder_type", "skip", "_init_kwargs"), "decoder_type 'skip' is not supported"),
        (setting("", "channel_mult_noise", 2, "_init_kwargs"), "channel_mult_noise 2 is not supported"),
        (
            setting("", "resample_filter", [1, 3, 3, 1], "_init_kwargs"),
            r"resample_filter \[1, 3, 3, 1\] is not",
        ),
        (setting("", "num_blocks", 7, "_init_kwargs"), "was given num_blocks 7, the tensors say 2"),
        (setting("", "channel_mult", [[]], "_init_kwargs"), "was given channel_mult a list, the tensors say"),
        (setting("", "dropout", "much", "_init_kwargs"), "expected a dropout .* got much"),
        (setting("wrapper", "sigma_data", -1.0), "expected a sigma_data above 0, got -1.0"),
        (setting("enc.16x16_block0.norm0", "eps", 1e-3), "enc.16x16_block0.norm0 has eps 0.001, our network"),
        (setting("enc.8x8_block0", "num_heads", 2), "enc.8x8_block0 has num_heads 2, our network 1"),
        (setting("enc.8x8_block0", "skip_scale", 1.0), "enc.8x8_block0 has skip_scale 1.0, our network 0.70"),
        (setting("map_noise", "endpoint", False), "map_noise has endpoint False, our network True"),
        (
            setting("enc.8x8_down.conv0", "resample_filter", torch.ones(1, 1, 2, 2), "_buffers"),
            "resample_filter at enc.8x8_down.conv0.resample_filter is not supported",
        ),
        (
            setting("enc.8x8_block0", "bias2", torch.ones(3), "_parameters"),
            r"not those of this architecture \(1 left over: network.enc.8x8_block0.bias2\)",
        ),
        (
            setting("map_layer1", "weight", torch.ones(3, 3), "_parameters"),
            r"1 of another shape: network.map_l",
        ),
        (setting("map_layer1", "bias", None, "_parameters"), "1 missing: network.map_layer1.bias"),
        (
            setting("map_layer1", "bias", torch.ones(32).double(), "_parameters"),
            "found float64 at map_layer1.bias",
        ),
        (
            setting("map_layer1", "bias", "text", "_parameters"),
            "expected a tensor at map_layer1.bias, got a str",
        ),
        (
            setting("map_layer0", "weight", None, "_parameters"),
            "expected a tensor map_layer0.weight of 2 dim",
        ),
        (setting("wrapper", "_modules", {}), "expected EDMPrecond to hold a module 'model', found none"),
        (setting("wrapper", "_modules", 3), "expected EDMPrecond to hold a module 'model', found none"),
        (setting("map_layer1", "_modules", {"x": 3}), "expected a module at 'map_layer1.x', got a int"),
        (
            setting("map_layer1", "_modules", [3]),
            "expected _modules of 'map_layer1' to be a dict, got a list",
        ),
    ],
)
def test_what_would_compute_something_else_is_refused_by_name(tmp_path, change, expected):
    import re

    line = spoilt(tmp_path, change)
    assert re.search(expected, line), line


def test_a_missing_block_and_levels_that_do_not_halve(tmp_path):
    def change(path, kind, state):
        if path == "":
            children = state["_modules"]["enc"]._modules
            children["5x5_block0"] = children.pop("8x8_block0")

    assert "on resolutions that halve, found [16, 8, 5]" in spoilt(tmp_path, change)


def test_a_module_in_two_places_is_refused(tmp_path):
    def change(path, kind, state):
        if path == "":
            state["_modules"]["again"] = state["_modules"]["map_layer0"]

    assert "occurs twice" in spoilt(tmp_path, change)


def test_tensors_that_share_their_values_are_refused(tmp_path):
    shared = torch.ones(16)

    def change(path, kind, state):
        if path.startswith("enc.8x8_block1.norm"):
            state["_parameters"]["weight"] = shared

    assert "tensors share values" in spoilt(tmp_path, change)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ({"G": 1, "D": 2, "G_ema": 3}, "expected an entry 'ema', as EDM writes it, found G, D, G_ema"),
        ({}, "expected an entry 'ema', as EDM writes it, found nothing"),
        ({"ema": None}, "expected a network, found a NoneType"),
        ([1, 2], "expected a network, found a list"),
        (Persistent("EDMPrecond", [1]), "expected a module at 'the top', got a persistence.EDMPrecond"),
        (np.float64(3), "expected a network, found a float"),
    ],
)
def test_pickles_of_something_else_say_what_they_hold(tmp_path, root, expected):
    path = tmp_path / "x.pkl"
    with edm_modules():
        path.write_bytes(pickle.dumps(root, 4))
    with pytest.raises(FeatlensError) as caught:
        read_edm(path)
    assert expected in str(caught.value)


def test_files_of_torch_save_are_told_from_pickles_and_answered_with_advice(tmp_path):
    from featlens_trainers.convert.adapter import load_edm
    from featlens_trainers.convert.names import recognise

    for zipped in (True, False):
        path = tmp_path / f"training-state-{zipped}.pt"
        torch.save({"net": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UsageError, match=r"give the network-snapshot-\*.pkl of the same run instead"):
            recognise(path)
        with pytest.raises(UsageError, match=r"file of torch.save"):
            load_edm(str(path), "cpu")
    assert load_edm(str(tmp_path), "cpu") is None
    assert load_edm("a\0b", "cpu") is None
    assert load_edm("x" * 5000, "cpu") is None
    (tmp_path / "text").write_text("\x80 is not a pickle")
    assert load_edm(str(tmp_path / "text"), "cpu") is None
