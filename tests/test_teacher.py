"""Teacher training: the loss, the noise levels it sees, what it learns, and exact resumption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from featlens import SampleSet
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError
from featlens_trainers import (
    StudyConfig,
    TeacherConfig,
    Training,
    UNetConfig,
    build_denoiser,
    edm_loss,
    start_teacher,
    tasks,
    train_teacher,
)
from featlens_trainers.data import ImageData
from featlens_trainers.runs import Run
from featlens_trainers.settings import ClassifierConfig, RegressionConfig
from featlens_trainers.tasks import teacher as teacher_task
from featlens_trainers.teacher import regress_map
from featlens_trainers.training import TrainingError

TINY = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())
DROPPING = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=(), dropout=0.3)
CONFIG = TeacherConfig(images=48, batch=8, lr=1e-3, ramp_images=16, ema_half_life=16, ema_ramp=0.5)


def images(count: int = 20, labels: int = 0) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def started(network: UNetConfig = TINY, seed: int = 0) -> Training:
    return start_teacher(build_denoiser(network, 0.5, seed), CONFIG)


def copy_of(training: Training) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in training.tensors().items()}


def assert_equal(first: Training, second: Training) -> None:
    one, other = first.tensors(), second.tensors()
    # What a run notes about its log is no part of the training.
    one.pop("notes", None), other.pop("notes", None)
    assert first.images == second.images
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Recorder:
    """Remembers what a denoiser was called with."""

    def __init__(self, training: Training) -> None:
        self.sigmas: list[Tensor] = []
        self.images: list[Tensor] = []
        self.labels: list[Tensor | None] = []
        training.networks["net"].register_forward_pre_hook(self._record)

    def _record(self, module: object, inputs: tuple[Tensor, Tensor, Tensor | None]) -> None:
        self.images.append(inputs[0].clone())
        self.sigmas.append(inputs[1].clone())
        self.labels.append(inputs[2])


# --- loss ---------------------------------------------------------------------------------------------------


def test_loss_is_the_weighted_error_summed_over_pixels_and_averaged_over_images() -> None:
    denoiser = build_denoiser(TINY, 0.5, 0)
    x0, noise = images(3), torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    sigma = torch.tensor([0.1, 0.7, 4.0])
    total = 0.0
    with torch.no_grad():
        for i in range(3):
            s = float(sigma[i])
            estimate = denoiser(x0[i : i + 1] + s * noise[i : i + 1], sigma[i : i + 1])
            weight = (s**2 + 0.25) / (0.5 * s) ** 2
            total += weight * float(((estimate - x0[i]) ** 2).sum())
        assert float(edm_loss(denoiser, x0, sigma, noise)) == pytest.approx(total / 3, rel=1e-5)


# --- what training sees -------------------------------------------------------------------------------------


def test_single_sigma_training_sees_that_sigma_only() -> None:
    training = started()
    seen = Recorder(training)
    for _ in train_teacher(training, images(), TeacherConfig(images=40, batch=8, sigma=2.5), seed=0):
        pass
    assert len(seen.sigmas) == 5
    assert torch.cat(seen.sigmas).tolist() == [2.5] * 40


def test_training_sees_lognormal_noise_levels_and_noise_of_just_that_size() -> None:
    training = started()
    seen = Recorder(training)
    config = TeacherConfig(images=512, batch=128, p_mean=0.3, p_std=0.8)
    for _ in train_teacher(training, torch.full((10, 1, 4, 4), 0.25), config, seed=0):
        pass
    sigma = torch.cat(seen.sigmas)
    assert float(sigma.log().mean()) == pytest.approx(0.3, abs=0.02)
    assert float(sigma.log().std()) == pytest.approx(0.8, abs=0.02)
    noise = (torch.cat(seen.images) - 0.25) / sigma[:, None, None, None]
    assert float(noise.mean()) == pytest.approx(0, abs=0.05)
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert float((noise.flatten(1).std(1).log() * sigma.log()).mean()) == pytest.approx(0, abs=0.05)


def test_every_image_is_seen_once_an_epoch() -> None:
    training = started()
    seen = Recorder(training)
    coded = torch.arange(12.0)[:, None, None, None].expand(12, 1, 4, 4).contiguous()
    config = TeacherConfig(images=24, batch=4, sigma=1e-4)
    for _ in train_teacher(training, coded, config, seed=0):
        pass
    rows = torch.cat(seen.images).mean((1, 2, 3)).round().int().tolist()
    assert sorted(rows[:12]) == sorted(rows[12:]) == list(range(12))
    assert rows[:12] != rows[12:]


def test_labels_stay_with_their_images() -> None:
    training = started(UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=(), labels=12))
    seen = Recorder(training)
    labels = torch.arange(12)
    coded = labels.float()[:, None, None, None].expand(12, 1, 4, 4).contiguous()
    for _ in train_teacher(training, coded, TeacherConfig(images=24, batch=4, sigma=1e-4), 0, labels):
        pass
    rows = torch.cat(seen.images).mean((1, 2, 3)).round().long()
    assert torch.equal(torch.cat(seen.labels), rows)


@pytest.mark.parametrize("name", ["teacher", "single_sigma", "band_sigma"])
def test_held_out_images_never_reach_training(name: str, tmp_path: Path, monkeypatch) -> None:
    class Reached(Exception):
        pass

    given: list[ImageData] = []

    def spy(training: Training, data: ImageData, *rest: object, **more: object) -> None:
        given.append(data)
        raise Reached

    monkeypatch.setattr(teacher_task, "train_teacher", spy)
    config = StudyConfig(network=UNetConfig(channels=8), classifier=ClassifierConfig(images=128))
    tasks.run_classifier(tmp_path, config, "cpu")
    with pytest.raises(Reached):
        if name == "teacher":
            tasks.run_teacher(tmp_path, config, "cpu")
        else:
            tasks.run_control(tmp_path, config, "cpu", name)
    held, trained = SampleSet.load(split="held-out"), SampleSet.load(split="train")
    seen, _ = given[0].batch(torch.arange(len(given[0])))
    assert torch.equal(seen, torch.from_numpy(trained.images))
    assert not set(held.ids.tolist()) & set(trained.ids.tolist())
    rows = {image.tobytes() for image in seen.numpy()}
    assert not any(image.tobytes() in rows for image in held.images)


# --- what it does -------------------------------------------------------------------------------------------


def test_steps_count_images_and_the_average_follows_its_half_life() -> None:
    training = started()
    expected = copy_of(training)["net/ema/network.enc.4x4_conv.weight"]
    seen = []
    for step in train_teacher(training, images(), CONFIG, seed=0):
        seen.append(step.images)
        decay = 0.5 ** (8 / min(16, 0.5 * step.images))
        live = training.networks["net"].network.enc["4x4_conv"].weight.detach()
        expected = decay * expected + (1 - decay) * live
        assert set(step.metrics) == {"loss"}
    assert seen == [8, 16, 24, 32, 40, 48]
    torch.testing.assert_close(training.networks["ema"].network.enc["4x4_conv"].weight, expected)


def test_learning_rate_ramps_up_and_falls_to_zero_at_the_end() -> None:
    training = started()
    group = training.optimizers["net"].param_groups[0]
    rates = [group["lr"] / CONFIG.lr for _ in train_teacher(training, images(), CONFIG, seed=0)]
    assert rates[:2] == pytest.approx([0.5, 1.0])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_a_trained_teacher_beats_the_best_linear_denoiser_on_data_with_structure() -> None:
    signs = torch.tensor([-1.0, 1.0])[:, None, None, None]
    data = (0.5 * signs).expand(2, 1, 4, 4).contiguous()
    training = started()
    config = TeacherConfig(images=32 * 80, batch=32, lr=5e-3, ramp_images=320, ema_half_life=200)
    for _ in train_teacher(training, data, config, seed=0):
        pass
    numbers = torch.Generator().manual_seed(5)
    x0 = data.repeat(100, 1, 1, 1)
    noise = torch.randn(x0.shape, generator=numbers)
    ema = training.networks["ema"]
    assert isinstance(ema, EDMDenoiser)
    with torch.no_grad():
        error = float((ema(x0 + 0.5 * noise, torch.full((200,), 0.5)) - x0).square().mean())
    # Pixel by pixel, shrinking towards 0 leaves s^2 sigma^2 / (s^2 + sigma^2).
    assert error < 0.5 * 0.125


def test_images_that_are_not_finite_are_named_before_training() -> None:
    data = images()
    data[3, 0, 0, 0] = float("nan")
    with pytest.raises(FeatlensError, match="image 3 holds NaN"):
        list(train_teacher(started(), data, TeacherConfig(images=40, batch=20), seed=0))


def test_weights_that_diverged_stop_training_with_the_place() -> None:
    training = started()
    with torch.no_grad():
        training.networks["net"].network.map_layer0.bias.fill_(float("inf"))
    with pytest.raises(TrainingError, match="loss became nan after 0 images; lower the learning rate"):
        list(train_teacher(training, images(), CONFIG, seed=0))


# --- randomness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [TINY, DROPPING], ids=["plain", "dropout"])
def test_training_depends_on_its_seed_and_on_nothing_else(network: UNetConfig) -> None:
    trainings = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        training = started(network)
        for _ in train_teacher(training, images(), CONFIG, seed=3):
            torch.rand(5)
        trainings.append(training)
    assert_equal(*trainings)
    other = started(network)
    list(train_teacher(other, images(), CONFIG, seed=4))
    assert not torch.equal(*(t.networks["net"].network.enc["4x4_conv"].weight for t in (other, trainings[0])))


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(train_teacher(started(DROPPING), images(), CONFIG, seed=0))
    assert torch.equal(torch.rand(1), expected)


# --- resumption ---------------------------------------------------------------------------------------------


def interrupted(folder: Path, steps_of, build, stop: int, total: int) -> Training:
    """Train ``stop`` steps, save, forget everything, restore in new objects, and finish."""
    with Run(folder, "test", {}) as run:
        training = build()
        for step in run.drive(training, steps_of(training), total, save_every=10**9):
            if step.images == 8 * stop:
                run.save(training)
                break
    again = build()
    with Run(folder, "test", {}) as run:
        assert run.restore(again) == []
        assert again.images == 8 * stop
        for _ in run.drive(again, steps_of(again), total, save_every=10**9):
            pass
    return again


@pytest.mark.parametrize("network", [TINY, DROPPING], ids=["plain", "dropout"])
@pytest.mark.parametrize("stop", [1, 4])
def test_teacher_resumes_bit_for_bit(tmp_path: Path, network: UNetConfig, stop: int) -> None:
    def steps(training: Training):
        return train_teacher(training, images(), CONFIG, seed=0)

    whole = started(network)
    list(steps(whole))
    assert_equal(interrupted(tmp_path, steps, lambda: started(network), stop, CONFIG.images), whole)


def test_map_regression_resumes_bit_for_bit(tmp_path: Path) -> None:
    teacher = build_denoiser(TINY, 0.5, 9)
    config = RegressionConfig(images=48, batch=8, ramp_images=16, ema_half_life=16, ema_ramp=0.5)

    def steps(training: Training):
        return regress_map(training, teacher, (1, 4, 4), 2.5, config, seed=0)

    whole = started(DROPPING)
    list(steps(whole))
    assert_equal(interrupted(tmp_path, steps, lambda: started(DROPPING), 3, 48), whole)
