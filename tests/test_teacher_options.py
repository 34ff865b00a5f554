"""Teachers beyond the plain one: bands, augmentation, labels, parts of a batch, tracks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers import (
    TeacherConfig,
    Training,
    UNetConfig,
    build_denoiser,
    edm_loss,
    start_teacher,
    train_teacher,
)
from featlens_trainers.augment import augment
from featlens_trainers.data import TensorData
from featlens_trainers.engine import Engine
from featlens_trainers.runs import Run
from featlens_trainers.settings import NoiseConfig
from featlens_trainers.teacher import dropout_masks
from featlens_trainers.training import TrainingError, stream

TINY = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())
CLASSES = dataclasses.replace(TINY, labels=3)
TOLD = dataclasses.replace(TINY, augment_labels=9)
CONFIG = TeacherConfig(images=48, batch=8, lr=1e-3, ramp_images=16, ema_half_life=16, ema_ramp=0.5)


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def started(network: UNetConfig = TINY, config: TeacherConfig = CONFIG) -> Training:
    return start_teacher(build_denoiser(network, 0.5, 0), config)


def run(training: Training, config: TeacherConfig = CONFIG, **more: object) -> list[float]:
    given = {"data": images(), "seed": 0, **more}
    return [step.metrics["loss"] for step in train_teacher(training, config=config, **given)]  # type: ignore[arg-type]


def assert_equal(first: Training, second: Training) -> None:
    one, other = first.tensors(), second.tensors()
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def recorded(training: Training) -> list[tuple[Tensor | None, ...]]:
    seen: list[tuple[Tensor | None, ...]] = []
    training.networks["net"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    return seen


# --- noise levels -------------------------------------------------------------------------------------------


def test_band_training_sees_the_cut_lognormal_and_nothing_else() -> None:
    config = TeacherConfig(images=384, batch=128, sigma_low=0.3, sigma_high=2.0)
    training = started(config=config)
    seen = recorded(training)
    run(training, config)
    sigma = torch.cat([inputs[1] for inputs in seen]).double()
    assert float(sigma.min()) >= 0.3
    assert float(sigma.max()) <= 2.0
    # Stratified: each batch has one level in each 128-quantile of the cut distribution.
    low, high = (torch.special.ndtr(torch.tensor((math.log(s) + 1.2) / 1.2)) for s in (0.3, 2.0))
    within = (torch.special.ndtr((sigma.log() + 1.2) / 1.2) - low) / (high - low)
    for batch in within.split(128):
        assert sorted((batch * 128).floor().clamp(0, 127).int().tolist()) == list(range(128))


@pytest.mark.parametrize("side", [{"sigma_low": 1.0}, {"sigma_high": 0.2}])
def test_a_band_can_be_open_on_one_side(side: dict[str, float]) -> None:
    config = TeacherConfig(images=256, batch=64, **side)
    training = started(config=config)
    seen = recorded(training)
    run(training, config)
    sigma = torch.cat([inputs[1] for inputs in seen])
    assert float(sigma.min()) >= side.get("sigma_low", 0.0)
    assert float(sigma.max()) <= side.get("sigma_high", 1e9)


def test_settings_tell_the_distribution_of_noise() -> None:
    assert TeacherConfig().noise == NoiseConfig("lognormal", -1.2, 1.2)
    assert TeacherConfig(sigma_low=0.1, sigma_high=1.0).noise == NoiseConfig("lognormal", -1.2, 1.2, 0.1, 1.0)
    assert TeacherConfig(sigma=2.5).noise == NoiseConfig("fixed", sigma=2.5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma": 2.5, "sigma_low": 0.1}, "one noise level, .* at a band"),
        ({"sigma_low": 2.0, "sigma_high": 1.0}, "sigma_low must be below sigma_high, got 2.0 and 1.0"),
        ({"sigma_high": -1.0}, "sigma_high must be above 0"),
        ({"augment": 1.5}, "augment is a probability from 0 to 1, got 1.5"),
        ({"augment_flip": 1.0}, "augment_flip needs augment above 0"),
        ({"snapshot_images": -1}, "snapshot_images must be at least 0"),
        ({"ema_half_lives": (100, 100)}, "ema_half_lives names a value twice"),
        ({"ema_half_lives": (0,)}, "ema_half_lives are images above 0, got 0"),
        ({"ema_powers": (0.5,)}, "relative width must be above 0 and at most 0.2887"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TeacherConfig(**wrong)  # type: ignore[arg-type]


# --- augmentation -------------------------------------------------------------------------------------------


def test_the_network_sees_augmented_images_and_is_told_how() -> None:
    config = dataclasses.replace(CONFIG, augment=0.6, sigma=1e-4, images=8)
    training = started(TOLD)
    seen = recorded(training)
    run(training, config)
    noised, _, labels, told = seen[0]
    rows = torch.randperm(20, generator=stream(0, "epoch", 0))[:8]
    expected, expected_labels = augment(images()[rows], 0.6, stream(0, "augment", 0))
    torch.testing.assert_close(noised, expected, atol=1e-3, rtol=0)
    assert torch.equal(told, expected_labels)  # type: ignore[arg-type]
    assert bool(expected_labels.any())
    assert labels is None


def test_no_augmentation_changes_nothing_but_the_label_layer() -> None:
    plain, told = started(TINY), started(TOLD)
    told.networks["net"].load_state_dict(plain.networks["net"].state_dict(), strict=False)
    assert run(plain) == run(told)


def test_no_augmentation_labels_mean_zero_labels() -> None:
    denoiser = build_denoiser(TOLD, 0.5, 0)
    nn.init.normal_(denoiser.network.map_augment.weight)
    x, sigma = images(3), torch.tensor([0.1, 1.0, 5.0])
    with torch.no_grad():
        assert torch.equal(denoiser(x, sigma), denoiser(x, sigma, None, torch.zeros(3, 9)))
        assert not torch.equal(denoiser(x, sigma), denoiser(x, sigma, None, torch.ones(3, 9)))
        noise = torch.zeros_like(x)
        assert float(edm_loss(denoiser, x, sigma, noise)) == float(
            edm_loss(denoiser, x, sigma, noise, augment_labels=torch.zeros(3, 9))
        )


def test_augmentation_needs_a_network_that_is_told_of_it() -> None:
    with pytest.raises(UsageError, match=r"told of it by 9 numbers, .* augment_labels = 0; set network"):
        run(started(), dataclasses.replace(CONFIG, augment=0.12))


# --- data and labels ----------------------------------------------------------------------------------------


class Lazy:
    """Data that is no tensor: made when it is asked for, labelled by row."""

    shape = (1, 4, 4)

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 20

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        self.asked.append(len(rows))
        return images()[rows], rows % self.num_labels if self.num_labels else None


def test_data_that_is_read_lazily_trains_as_its_tensor_does() -> None:
    labels = torch.arange(20) % 3
    tensor, lazy = started(CLASSES), started(CLASSES)
    assert run(tensor, labels=labels) == run(lazy, data=Lazy(3))
    assert_equal(tensor, lazy)


def test_an_unconditional_network_ignores_labels() -> None:
    with_labels, without = started(), started()
    assert run(with_labels, data=Lazy(3)) == run(without)
    assert_equal(with_labels, without)


def test_a_conditional_network_needs_labels_and_enough_of_them() -> None:
    with pytest.raises(UsageError, match=r"conditional \(3 labels\) and the data has no labels; give labels"):
        run(started(CLASSES))
    with pytest.raises(UsageError, match="the data has 4 classes and the network 3 labels"):
        run(started(CLASSES), labels=torch.arange(20) % 4)


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(UsageError, match=r"of shape \(1, 4, 4\), the data has \(3, 8, 8\); set"):
        run(started(), data=torch.zeros(20, 3, 8, 8))


def test_images_that_are_not_finite_are_named_and_move_no_weight() -> None:
    class Damaged(Lazy):
        def batch(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
            held = images()
            held[3, 0, 0, 0] = float("nan")
            return held[rows], None

    training = started()
    before = {name: tensor.clone() for name, tensor in training.networks["net"].state_dict().items()}
    message = r"the denoising loss became nan after 0 images; images 3 of the data hold values .*finite"
    with pytest.raises(TrainingError, match=message):
        run(training, TeacherConfig(images=40, batch=20), data=Damaged(0))
    after = training.networks["net"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert training.images == 0


# --- parts of a batch ---------------------------------------------------------------------------------------


def test_parts_of_a_batch_give_what_the_batch_gives() -> None:
    network = dataclasses.replace(CLASSES, augment_labels=9)
    config = dataclasses.replace(CONFIG, augment=0.5)
    data = Lazy(3)
    whole, parts = started(network), started(network)
    one = run(whole, config, data=Lazy(3))
    other = run(parts, config, data=data, engine=Engine(accumulate=4))
    assert data.asked == [2] * 24
    assert other == pytest.approx(one, rel=1e-4)
    first, second = (t.networks["ema"].state_dict() for t in (whole, parts))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=2e-5, rtol=1e-4)


def test_parts_have_masks_of_dropout_of_their_own() -> None:
    def drawn(part: slice) -> float:
        with dropout_masks(0, 640, part):
            return float(torch.rand(1))

    first, second = slice(0, 8), slice(8, 16)
    assert drawn(first) == drawn(slice(0, 16)) == drawn(first)
    assert drawn(second) == drawn(second) != drawn(first)
    network = dataclasses.replace(TINY, dropout=0.5)
    whole, parts, again = (started(network) for _ in range(3))
    losses = [run(whole), *(run(training, engine=Engine(accumulate=2)) for training in (parts, again))]
    assert losses[1] == losses[2] != losses[0]


# --- tracks and resumption ----------------------------------------------------------------------------------

FULL = dataclasses.replace(CONFIG, augment=0.4, ema_half_lives=(8,), ema_powers=(0.05, 0.1))


def test_additional_tracks_leave_the_training_as_it_was() -> None:
    plain, more = started(), started(config=dataclasses.replace(CONFIG, ema_powers=(0.1,)))
    assert run(plain) == run(more)
    assert set(more.networks) == {"net", "ema", "ema-power0.1"}
    for name in plain.networks:
        one, other = plain.networks[name].state_dict(), more.networks[name].state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)


def resumed(folder: Path, build, steps_of, stop: int) -> Training:
    """Train ``stop`` steps, save, forget everything, restore in new objects, and finish."""
    with Run(folder, "test", {}) as record:
        training = build()
        for step in steps_of(training):
            if step.images == 8 * stop:
                record.save(training)
                break
    again = build()
    with Run(folder, "test", {}) as record:
        assert record.restore(again) == []
    assert again.images == 8 * stop
    for _ in steps_of(again):
        pass
    return again


def test_all_tracks_and_augmentation_resume_bit_for_bit(tmp_path: Path) -> None:
    network = dataclasses.replace(CLASSES, augment_labels=9, dropout=0.2)

    def steps(training: Training) -> Iterator[object]:
        return train_teacher(training, Lazy(3), FULL, seed=0)

    whole = started(network, FULL)
    list(steps(whole))
    assert list(whole.networks) == ["net", "ema", "ema-8", "ema-power0.05", "ema-power0.1"]
    assert_equal(resumed(tmp_path, lambda: started(network, FULL), steps, 4), whole)


def test_tensor_data_of_one_label_counts_as_labelled() -> None:
    assert len(run(started(CLASSES), data=TensorData(images(), torch.zeros(20).long()))) == 6
