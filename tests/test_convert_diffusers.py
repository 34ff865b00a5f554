"""Our networks inside diffusers: its loader reads the folder, and images are ours bit for bit."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from featlens.denoiser import weights_digest
from featlens.errors import UsageError
from featlens_trainers.convert import plan_conversion, read_diffusers_folder
from featlens_trainers.sampler import OneStepGenerator, generate, heun_sample, latents, sigma_schedule
from featlens_trainers.settings.network import UNetConfig
from featlens_trainers.snapshots import save_denoiser
from tests.convert_helpers import ADM, UNET, denoiser_of

diffusers = pytest.importorskip("diffusers")

# What diffusers and its dependencies say about their own future.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONFIG = UNetConfig(channels=8, dropout=0.1)


def folder_of(tmp_path, config=CONFIG, sigma_init=1.5):
    given = denoiser_of(config, sigma_data=0.6)
    save_denoiser(tmp_path / "ema.safetensors", given, sigma_init=sigma_init)
    plan_conversion(tmp_path / "ema.safetensors", tmp_path / "folder").write()
    return given, tmp_path / "folder"


def pipeline_of(folder):
    from featlens_trainers.diffusers_model import OneStepPipeline

    pipeline = OneStepPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("config", [CONFIG, UNET, ADM], ids=["small", "unet", "adm"])
def test_one_step_images_of_the_pipeline_are_ours_bit_for_bit(tmp_path, config):
    given, folder = folder_of(tmp_path, config)
    pipeline = pipeline_of(folder)
    assert weights_digest(pipeline.unet.denoiser) == weights_digest(given)
    labels = torch.tensor([0, 1, 2]) if config.labels else None
    student = OneStepGenerator(given, 1.5)
    expected = generate(lambda z: student(z, labels), 3, given.sample_shape, seed=7)
    images = pipeline(3, labels, seed=7, output_type="raw").images
    assert torch.equal(images, expected)
    z = latents(7, 0, 3, given.sample_shape)
    assert torch.equal(pipeline(class_labels=labels, latents=z, output_type="raw").images, expected)


def test_the_model_gives_the_denoisers_estimate(tmp_path):
    from featlens_trainers.diffusers_model import DenoiserModel

    given, folder = folder_of(tmp_path, UNET)
    model = DenoiserModel.from_pretrained(folder, subfolder="unet")
    assert not model.training
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([3, 0])
    expected = given(x, torch.full((2,), 0.5), labels)
    assert torch.equal(model(x, 0.5, labels).sample, expected)
    assert torch.equal(
        model(x, torch.tensor([0.5, 0.5]), class_labels=labels, return_dict=False)[0], expected
    )
    z = latents(0, 0, 2, (3, 16, 16))
    assert torch.equal(
        heun_sample(model.denoiser, z, labels, steps=3), heun_sample(given, z, labels, steps=3)
    )


def test_what_diffusers_writes_we_read(tmp_path):
    given, folder = folder_of(tmp_path)
    pipeline_of(folder).save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    ours = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ours["unet"] and index["_class_name"] == ours["_class_name"]
    back = read_diffusers_folder(tmp_path / "saved")
    assert weights_digest(back.denoiser) == weights_digest(given)
    assert (back.sigma_init, back.denoiser.sigma_data) == (1.5, 0.6)
    assert torch.equal(
        pipeline_of(tmp_path / "saved")(2, output_type="raw").images,
        pipeline_of(folder)(2, output_type="raw").images,
    )


def test_images_in_the_forms_that_diffusers_knows(tmp_path):
    _, folder = folder_of(tmp_path)
    pipeline = pipeline_of(folder)
    raw = pipeline(2, output_type="raw").images
    unit = pipeline(2, output_type="pt").images
    assert torch.equal(unit, (raw / 2 + 0.5).clamp(0, 1))
    pixels = pipeline(2, output_type="np", return_dict=False)[0]
    assert pixels.shape == (2, 8, 8, 1) and np.array_equal(pixels[..., 0], unit[:, 0].numpy())
    pictures = pipeline(2).images
    assert [picture.size for picture in pictures] == [(8, 8), (8, 8)]
    assert np.array_equal(np.asarray(pictures[0]), (pixels[0, ..., 0] * 255).round())
    drawn = pipeline(2, generator=torch.Generator().manual_seed(3), output_type="raw").images
    z = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, pipeline(latents=z, output_type="raw").images)
    assert not torch.equal(drawn, pipeline(latents=z, sigma_init=3.0, output_type="raw").images)
    with pytest.raises(UsageError, match="output_type: unknown 'pill': did you mean 'pil'"):
        pipeline(output_type="pill")
    with pytest.raises(UsageError, match=r"latents: expected \(B, 1, 8, 8\), got \(2, 3, 8, 8\)"):
        pipeline(latents=torch.zeros(2, 3, 8, 8))


def test_the_edm_scheduler_of_diffusers_starts_a_little_above_sigma_max(tmp_path):
    """Euler steps by diffusers equal Euler steps by hand, but from sqrt(80^2 + 1)."""
    given, _ = folder_of(tmp_path)
    scheduler = diffusers.EDMEulerScheduler(sigma_data=0.6)
    scheduler.set_timesteps(4)
    assert float(scheduler.init_noise_sigma) == pytest.approx((80**2 + 1) ** 0.5)
    z = latents(0, 0, 2, (1, 8, 8))
    x, by_hand = 80.0 * z, 80.0 * z
    levels = sigma_schedule(4)
    with torch.no_grad():
        for step, time in enumerate(scheduler.timesteps):
            inner = scheduler.scale_model_input(x, time)
            raw = given.network(inner, time.expand(2).float(), None)
            x = scheduler.step(raw, time, x).prev_sample
            now, then = float(levels[step]), float(levels[step + 1])
            estimate = given(by_hand, torch.full((2,), now))
            by_hand = by_hand + (then - now) * (by_hand - estimate) / now
    assert torch.allclose(x, by_hand, rtol=1e-4, atol=1e-4)


def test_the_how_to_runs_and_prints_what_it_says():
    text = (Path(__file__).parent.parent / "docs" / "how-to" / "convert.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, object] = {}
    assert len(blocks) == 4
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, "convert.md", "exec"), names)
        assert printed.getvalue().splitlines() == [
            line[2:] for line in block.splitlines() if line.startswith("# ")
        ]
