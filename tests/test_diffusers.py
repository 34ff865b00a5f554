"""Folders of diffusers by location: real small networks, saved by diffusers itself and loaded back."""

from __future__ import annotations

import copy
import json
import math
import pickle
import shutil
import sys

import pytest
import torch

import featlens
from featlens.denoiser import weights_digest
from featlens.diffusers_denoiser import DiffusersConfig, DiffusersDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.testing import check_denoiser

diffusers = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"
BLOCKS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}


def unet(**settings):
    made = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(**{**made, "attention_head_dim": 4, **BLOCKS, **settings}).eval()


def dit(**settings):
    made = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 2, "out_channels": 4}
    made |= {"num_layers": 2, "sample_size": 4, "num_embeds_ada_norm": 5}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.DiTTransformer2DModel(**{**made, **settings}).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Writes a network, and a scheduler in its folder ``scheduler/``, once for the same settings."""
    known = {}

    def save(network, scheduler=None, where="scheduler"):
        key = json.dumps(
            [dict(network.config), dict(scheduler.config) if scheduler else None, where], default=str
        )
        if key not in known:
            folder = tmp_path_factory.mktemp("model")
            network.save_pretrained(folder)
            if scheduler is not None:
                scheduler.save_pretrained(folder / where if where else folder)
            known[key] = folder
        return known[key]

    return save


def x_of(model, batch=3, sigma=1.0):
    numbers = torch.Generator().manual_seed(1)
    return sigma * torch.randn((batch, *model.sample_shape), generator=numbers)


def ddpm(**settings):
    return diffusers.DDPMScheduler(**settings)


CASES = {
    "positional": lambda: (unet(), None),
    "learned steps": lambda: (unet(time_embedding_type="learned", num_train_timesteps=1000), ddpm()),
    "v": lambda: (unet(), ddpm(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")),
    "zero snr": lambda: (unet(), ddpm(prediction_type="v_prediction", rescale_betas_zero_snr=True)),
    "fourier": lambda: (unet(time_embedding_type="fourier"), None),
    "ve": lambda: (unet(time_embedding_type="fourier"), diffusers.ScoreSdeVeScheduler(sigma_max=50)),
    "edm": lambda: (unet(), diffusers.EDMEulerScheduler(sigma_data=0.7)),
    "flow": lambda: (unet(), diffusers.FlowMatchEulerDiscreteScheduler()),
    "centred": lambda: (unet(center_input_sample=True), None),
    "variances": lambda: (unet(out_channels=2), None),
    "dit": lambda: (dit(), diffusers.DDIMScheduler(prediction_type="sample")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_loaded_is_a_denoiser_with_the_weights_that_were_saved(saved, case):
    network, scheduler = CASES[case]()
    state = torch.get_rng_state()
    model = featlens.load(saved(network, scheduler))
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(model, DiffusersDenoiser) and isinstance(model, featlens.Denoiser)
    assert not any(module.training for module in model.modules())
    assert weights_digest(model.network) == weights_digest(network)
    check_denoiser(model)
    assert model.sigma_init is None


# Against what diffusers itself makes of the same network and its own scheduler.


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("make", [unet, dit])
def test_the_estimate_is_that_of_diffusers_own_step(saved, make, prediction):
    network, scheduler = make(), ddpm(clip_sample=False, prediction_type=prediction)
    model = featlens.load(saved(network, scheduler))
    assert model.config.prediction == prediction
    labels = torch.tensor([4, 0, 2]) if make is dit else None
    for step in (3, 400, 900):
        alpha = float(scheduler.alphas_cumprod[step])
        sigma = math.sqrt((1 - alpha) / alpha)
        x = x_of(model, sigma=sigma)
        given = x * math.sqrt(alpha)
        with torch.no_grad():
            out = network(given, torch.full((3,), step), class_labels=labels).sample[:, : x.shape[1]]
            estimate = model(x, torch.full((3,), sigma), labels)
        expected = scheduler.step(out, step, given).pred_original_sample
        assert float((estimate - expected).abs().max()) < 1e-3 * float(expected.abs().max())


def test_a_score_is_used_as_tweedie_says(saved):
    network = unet(time_embedding_type="fourier")
    model = featlens.load(saved(network, diffusers.ScoreSdeVeScheduler(sigma_min=0.1, sigma_max=50)))
    assert model.sigma_range == (0.1, 50)
    x, sigma = x_of(model), torch.tensor([0.2, 1.0, 40.0])
    with torch.no_grad():
        score = network(x, sigma).sample
        torch.testing.assert_close(model(x, sigma), x + sigma.reshape(-1, 1, 1, 1) ** 2 * score)


def test_edm_is_preconditioned_as_its_scheduler_says(saved):
    network, scheduler = unet(), diffusers.EDMEulerScheduler(sigma_data=0.7, sigma_max=40.0)
    model = featlens.load(saved(network, scheduler))
    assert (model.sigma_data, model.sigma_range) == (0.7, (0.002, 40.0))
    x, sigma = x_of(model), torch.tensor(3.0)
    with torch.no_grad():
        told = scheduler.precondition_noise(sigma).expand(3)
        out = network(scheduler.precondition_inputs(x, sigma), told).sample
        expected = scheduler.precondition_outputs(x, out, sigma)
        torch.testing.assert_close(model(x, sigma.expand(3)), expected)


def test_a_network_for_images_from_0_to_1_is_given_them(saved):
    plain, centred = unet(), unet(center_input_sample=True)
    centred.load_state_dict(plain.state_dict())
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.5)
    model = featlens.load(saved(centred, scheduler))
    assert (model.config.centred, model.sigma_data, model.sigma_range) == (True, 1.0, (0.004, 160.0))
    x, sigma = x_of(model), torch.tensor(3.0)
    image, level = (x + 1) / 2, sigma / 2
    with torch.no_grad():
        # By hand: this network sees 2 u - 1 of what it is given.
        given = 2 * scheduler.precondition_inputs(image, level) - 1
        out = plain(given, scheduler.precondition_noise(level).expand(3)).sample
        expected = 2 * scheduler.precondition_outputs(image, out, level) - 1
        torch.testing.assert_close(model(x, sigma.expand(3)), expected)
    assert featlens.load(f"{saved(centred, scheduler)}:sigma_data=0.8").sigma_data == 0.8


def test_steps_that_can_only_be_whole_are_the_nearest(saved):
    network = unet(time_embedding_type="learned", num_train_timesteps=1000)
    model = featlens.load(saved(network, ddpm()))
    logs = model.parameterisation.log_sigmas
    seen = []
    model.network.time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(x_of(model, 1), torch.tensor([math.exp(0.4 * logs[500] + 0.6 * logs[501])], dtype=torch.float64))
    assert seen[0].tolist() == [501] and seen[0].dtype == torch.int64


# Labels


def test_labels_and_the_lack_of_them(saved):
    model = featlens.load(saved(dit()))
    assert (model.num_labels, model.config.null_label) == (5, 5)
    x, sigma = x_of(model), torch.ones(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x, sigma), model(x, sigma, torch.full((3,), 5)))
        assert not torch.allclose(model(x, sigma), model(x, sigma, torch.zeros(3, dtype=torch.int64)))

    folder = saved(unet(num_class_embeds=4))
    model = featlens.load(folder)
    assert model.num_labels == 4
    check_denoiser(model)
    x = x_of(model)
    with pytest.raises(UsageError, match=r"conditional \(4 classes\) and knows no class .*option null_label"):
        model(x, sigma)
    model = featlens.load(folder, null_label=1)
    assert model.num_labels == 4
    torch.testing.assert_close(model(x, sigma), model(x, sigma, torch.ones(3)))
    # The last class is for no label: there are three for images.
    assert featlens.load(folder, null_label=3).num_labels == 3


# Noise levels


def test_noise_levels_that_were_not_trained_are_refused(saved):
    model = featlens.load(saved(unet()))
    low, high = model.sigma_range
    assert (round(low, 4), round(high, 1)) == (0.01, 157.4)
    x = x_of(model, 2)
    model(x, torch.tensor([low * 0.9995, high * 1.0005]))
    for wrong in (0.9 * low, 1.1 * high, 0.0, float("nan")):
        with pytest.raises(UsageError, match=r"^sigma \S+ is outside .* UNet2DModel .* from 0.01 to 157.4$"):
            model(x, torch.tensor([1.0, wrong]))


def test_a_sigma_is_read_once_unless_it_changes(saved, monkeypatch):
    model = featlens.load(saved(unet()))
    x, sigma = x_of(model, 2), torch.ones(2)
    read = []
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *args: read.append(1) or aminmax(*args))
    model(x, sigma)
    model(x, sigma)
    assert len(read) == 1
    sigma.fill_(1e6)
    with pytest.raises(UsageError, match="sigma 1e"):
        model(x, sigma)
    with pytest.raises(UsageError, match="sigma 1e"):
        model(x, sigma)
    with torch.inference_mode():
        model(x, torch.ones(2))
    model(x, sigma.fill_(1))
    assert pickle.loads(pickle.dumps(model)).sample_shape == copy.deepcopy(model).sample_shape


# Where things lie


def test_pipelines_and_the_places_of_schedulers(saved, tmp_path):
    scheduler = ddpm(prediction_type="sample")
    flat = saved(unet(), scheduler, where="")
    assert featlens.load(flat).config.prediction == "sample"

    for part, network in (("unet", unet()), ("transformer", dit())):
        pipeline = tmp_path / part
        network.save_pretrained(pipeline / part)
        scheduler.save_pretrained(pipeline / "scheduler")
        (pipeline / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
        for location in (pipeline, pipeline / part, f"diffusers:{pipeline}"):
            model = featlens.load(location)
            assert (model.config.network, model.config.prediction) == (type(network).__name__, "sample")


def test_the_manifest_names_no_path_and_tells_settings_apart(saved, tmp_path):
    folder = saved(unet())
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    one, other = featlens.load(folder), featlens.load(moved)
    assert one.config == other.config
    assert repr(one.network.config) == repr(other.network.config)
    assert str(moved) not in repr(other.config) + repr(other.network.config)
    assert "1000 betas, linear from 0.0001 to 0.02, assumed as there is no schedul" in one.config.schedule
    assert isinstance(one.config, DiffusersConfig)
    configs = {
        featlens.load(f"{folder}:{given}").config for given in ("beta_end=0.03", "prediction_type=sample")
    }
    configs |= {one.config, featlens.load(saved(unet(center_input_sample=True))).config}
    assert len(configs) == 4
    assert one.config.digest != featlens.load(saved(unet(layers_per_block=2))).config.digest


def test_the_version_that_wrote_a_folder_makes_no_other_model(saved, tmp_path):
    shutil.copytree(saved(unet()), tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps({**config, "_diffusers_version": "0.30.0"}))
    assert featlens.load(tmp_path / "old").config == featlens.load(saved(unet())).config


def test_options_override_the_schedulers_file(saved):
    folder = saved(unet(), ddpm(trained_betas=[0.1, 0.2, 0.3]))
    model = featlens.load(folder)
    assert model.sigma_range[0] == pytest.approx(1 / 3)
    assert model.config.schedule.startswith("3 betas of its own (")
    given = "beta_schedule=scaled_linear,beta_start=0.001,beta_end=0.01,num_train_timesteps=100"
    model = featlens.load(f"{folder}:{given},prediction_type=v_prediction,sigma_data=0.25,dtype=bfloat16")
    assert model.config.schedule == "100 betas, scaled_linear from 0.001 to 0.01"
    assert (model.config.prediction, model.sigma_data) == ("v_prediction", 0.25)
    assert next(model.network.parameters()).dtype == torch.bfloat16
    assert model(x_of(model), torch.full((3,), 0.5)).dtype == torch.float32
    check_denoiser(model, sigma=0.3)


def test_variants_and_sizes(saved, tmp_path):
    network = unet(sample_size=None)
    network.save_pretrained(tmp_path, variant="fp16")
    with pytest.raises(UsageError, match=r"config.json has no sample_size; give the option sample_size=32"):
        featlens.load(tmp_path)
    with pytest.raises(UsageError, match=f"has no {WEIGHTS}: it has other weights; give variant=fp16"):
        featlens.load(tmp_path, sample_size=8)
    assert featlens.load(f"{tmp_path}:variant=fp16,sample_size=8").sample_shape == (1, 8, 8)
    assert featlens.load(f"{tmp_path}:variant=fp16,sample_size=[8, 16]").sample_shape == (1, 8, 16)


def test_sharded_weights(tmp_path):
    network = unet()
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / WEIGHTS).exists()
    assert weights_digest(featlens.load(tmp_path).network) == weights_digest(network)


def test_blocks_that_return_tuples_are_taken_apart(saved):
    model = featlens.load(saved(unet()))
    x, sigma = x_of(model, 2), torch.ones(2)
    with featlens.Capture(model.network, ["down_blocks.*[0]", "mid_block"], "gap") as seen, torch.no_grad():
        model(x, sigma)
    assert {name: tuple(value.shape) for name, value in seen.items()} == {
        "down_blocks.0[0]": (2, 8),
        "down_blocks.1[0]": (2, 16),
        "mid_block": (2, 16),
    }
    ran = featlens.sites(model, "type:ResnetBlock2D")
    assert ran[0].name == "down_blocks.0.resnets.0" and ran[0].shape == (8, 8, 8)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("prediction_type=noise", "unknown prediction_type 'noise'"),
        ("beta_schedule=liner", "unknown beta_schedule 'liner': did you mean 'linear'"),
        ("dtype=float8", "option dtype: unknown 'float8'"),
        ("null_label=3", "option null_label: the network is unconditional; leave it out"),
        ("sample_size=16", "option sample_size is 16, config.json says 8; leave out the option"),
        ("sample_size=x", "sample_size: expected a number of pixels such as 32"),
        ("variant=fp16", f"has no {WEIGHTS.replace('.', '.fp16.')}: it has other weights; give no variant"),
    ],
)
def test_wrong_options_are_refused(saved, options, message):
    with pytest.raises(UsageError) as caught:
        featlens.load(f"{saved(unet())}:{options}")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel is not among the networks"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep' is not made of class"),
        ({"in_channels": 3}, "the network takes 3 channels and gives 1"),
        ({"num_class_embeds": 3}, "the weights lack 'class_embedding.weight' (1 such in all)"),
        ({"add_attention": False}, "the weights have unknown 'mid_block.attentions.0."),
        ({"block_out_channels": [8, 24]}, "diffusers cannot load it ("),
    ],
)
def test_networks_that_cannot_be_loaded_say_why_in_one_line(saved, tmp_path, settings, message):
    folder = shutil.copytree(saved(unet()), tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(FeatlensError) as caught:
        featlens.load(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_pickled_missing_and_damaged_weights_are_refused(saved, tmp_path):
    for name, weights, message in (
        ("bin", "diffusion_pytorch_model.bin", r"only pickled weights .* UNet2DModel.from_pretrained\('"),
        ("none", "README.md", f"has no weights: expected {WEIGHTS}; download all files"),
        ("damaged", WEIGHTS, "diffusers cannot load it"),
    ):
        folder = tmp_path / name
        shutil.copytree(saved(unet()), folder)
        (folder / WEIGHTS).unlink()
        (folder / weights).write_bytes(b"not weights")
        with pytest.raises(FeatlensError, match=message):
            featlens.load(folder)


def test_folders_of_others_and_half_pipelines(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError, match="is not a model that featlens knows"):
        featlens.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config.json cannot be read as JSON"):
        featlens.load(tmp_path)
    (tmp_path / "config.json").rename(tmp_path / "model_index.json")
    with pytest.raises(UsageError, match=r"is a pipeline without unet/config.json and transformer/"):
        featlens.load(tmp_path)


def test_without_diffusers_the_extra_is_named(saved, monkeypatch):
    folder = saved(unet())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(FeatlensError, match=r"cannot be imported .*; pip install 'featlens\[diffusers\]'"):
        featlens.load(folder)
