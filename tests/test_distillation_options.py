"""Choices of the loop: updates of the critic, warm-up, noise, labels, averages, directions, bad input."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers import DIVERGENCES, DistillConfig, OneStepGenerator, build_denoiser, distill
from featlens_trainers.data import TensorData
from featlens_trainers.directions import DiffInstruct, Noised, RatioDirection, SiD, denoising_loss, ratio_loss
from featlens_trainers.distillation import make_direction, start_distillation
from featlens_trainers.networks import FakeScoreRatio, RatioConfig, RatioNetwork
from featlens_trainers.settings import NoiseConfig
from tests.distill_helpers import CONFIG, TINY, images, make_teacher, started, weights

LABELLED = dataclasses.replace(TINY, labels=4)
LABELS = torch.tensor([0] * 11 + [1] * 5 + [2] * 3 + [3])


def changed(**settings: object) -> DistillConfig:
    return dataclasses.replace(CONFIG, **settings)


class Recording(RatioDirection):
    """Notes everything that the loop hands over."""

    def __init__(self, training, divergence: str = "reverse_kl") -> None:
        super().__init__(training.networks["ratio"], DIVERGENCES[divergence])
        self.real: list[Noised] = []
        self.fake: list[Noised] = []
        self.moved: list[Noised] = []

    def critic_loss(self, real: Noised, fake: Noised):
        self.real.append(real)
        self.fake.append(fake)
        return super().critic_loss(real, fake)

    def image_gradient(self, fake: Noised) -> Tensor:
        self.moved.append(fake)
        return super().image_gradient(fake)


def recorded(config: DistillConfig, network=TINY, data=None, labels: Tensor | None = None) -> Recording:
    training = started(config, network)
    direction = Recording(training)
    held = images() if data is None else data
    for _ in distill(training, held, config, seed=0, labels=labels, direction=direction):
        pass
    return direction


# --- updates and warm-up ------------------------------------------------------------------------------------


def test_the_critic_is_updated_k_times_on_batches_of_its_own() -> None:
    seen = recorded(changed(critic_updates=3, images=40))
    assert (len(seen.real), len(seen.moved)) == (15, 5)
    # 15 batches of 8 are six epochs of 20 images, each image once in each.
    rows = torch.cat([real.clean for real in seen.real]).flatten(1)
    for epoch in range(6):
        part = rows[epoch * 20 : (epoch + 1) * 20]
        assert len(part.unique(dim=0)) == 20
    # The generator moves by the images of the last of the three.
    for step, moved in enumerate(seen.moved):
        assert torch.equal(moved.clean, seen.fake[3 * step + 2].clean)
        assert not torch.equal(moved.clean, seen.fake[3 * step + 1].clean)
        assert not torch.equal(moved.sigma, seen.fake[3 * step + 2].sigma)


def test_one_update_is_the_first_of_several() -> None:
    one, three = recorded(changed(images=8)), recorded(changed(images=8, critic_updates=3))
    assert torch.equal(one.real[0].x, three.real[0].x)
    assert torch.equal(one.fake[0].x, three.fake[0].x)


def test_warm_up_leaves_student_and_averages_untouched_bit_for_bit() -> None:
    config = changed(warmup=24, ema_powers=(0.1,))
    training = started(config)
    before = {name: weights(training, name) for name in training.networks}
    for step in distill(training, images(), config, seed=0):
        now = {name: weights(training, name) for name in training.networks}
        same = {
            name: all(torch.equal(now[name][k], v) for k, v in held.items()) for name, held in before.items()
        }
        if step.images <= 24:
            assert same == {"net": True, "ema": True, "ema-power0.1": True, "ratio": False}
            assert set(step.metrics) == {"ratio_loss", "h_real", "h_fake"}
            assert not training.optimizers["net"].state
        else:
            assert not any(same.values())
            assert "gradient_norm" in step.metrics
    assert training.images == 48


def test_learning_rates_rise_from_where_each_network_starts() -> None:
    config = changed(warmup=16, ramp_images=32, lr=1e-3, ratio_lr=4e-3)
    training = started(config)
    rates = [
        [training.optimizers[name].param_groups[0]["lr"] for name in ("net", "ratio")]
        for _ in distill(training, images(), config, seed=0)
    ]
    expected = [[1e-3, 1e-3], [1e-3, 2e-3], [2.5e-4, 3e-3], [5e-4, 4e-3], [7.5e-4, 4e-3], [1e-3, 4e-3]]
    assert [pytest.approx(pair) for pair in expected] == rates


def test_a_critic_of_several_updates_rises_by_the_images_it_has_seen() -> None:
    config = changed(critic_updates=2, ramp_images=64, ratio_lr=8e-3)
    training = started(config)
    rates = [
        training.optimizers["ratio"].param_groups[0]["lr"]
        for _ in distill(training, images(), config, seed=0)
    ]
    # The last of two updates of 8 images each, in each step.
    assert rates == [pytest.approx(rate) for rate in (2e-3, 4e-3, 6e-3, 8e-3, 8e-3, 8e-3)]


def test_generator_and_critic_have_noise_levels_of_their_own() -> None:
    config = changed(noise=NoiseConfig("fixed", sigma=0.25), critic_noise=NoiseConfig("fixed", sigma=4.0))
    seen = recorded(config)
    assert {float(s) for real in seen.real for s in real.sigma} == {4.0}
    assert {float(s) for moved in seen.moved for s in moved.sigma} == {0.25}
    spread = torch.cat([real.x - real.clean for real in seen.real]).std()
    assert float(spread) == pytest.approx(4.0, rel=0.15)


def test_every_track_is_an_average_of_the_student() -> None:
    config = changed(ema_half_lives=(8,), ema_powers=(0.1,))
    training = started(config)
    assert set(training.networks) == {"net", "ema", "ema-8", "ema-power0.1", "ratio"}
    expected = weights(training, "ema")
    for step in distill(training, images(), config, seed=0):
        live, kept = weights(training, "net"), 0.5 ** (8 / min(8, 0.5 * step.images))
        expected = {key: kept * mean + (1 - kept) * live[key] for key, mean in expected.items()}
    torch.testing.assert_close(weights(training, "ema-8"), expected)


# --- labels -------------------------------------------------------------------------------------------------


def test_generated_images_take_the_label_of_their_partner() -> None:
    seen = recorded(CONFIG, LABELLED, labels=LABELS)
    data = images()
    for real, fake, moved in zip(seen.real, seen.fake, seen.moved, strict=True):
        rows = (real.clean[:, None] == data[None]).flatten(2).all(2).int().argmax(1)
        assert torch.equal(real.labels, LABELS[rows])
        assert torch.equal(fake.labels, real.labels)
        assert torch.equal(moved.labels, real.labels)


def test_labels_of_generated_images_can_be_drawn_class_balanced() -> None:
    seen = recorded(changed(fake_labels="balanced"), LABELLED, labels=LABELS)
    assert all(fake.labels.bincount().tolist() == [2] * 4 for fake in [*seen.fake, *seen.moved])
    assert not all(real.labels.bincount(minlength=4).tolist() == [2] * 4 for real in seen.real)
    assert torch.equal(seen.moved[0].labels, seen.fake[0].labels)
    assert not torch.equal(seen.fake[0].labels, seen.fake[1].labels)


def test_real_images_can_be_drawn_class_balanced() -> None:
    seen = recorded(changed(balanced=True), LABELLED, labels=LABELS)
    assert all(real.labels.bincount().tolist() == [2] * 4 for real in seen.real)
    unconditional = recorded(changed(balanced=True), TINY, TensorData(images(), LABELS))
    assert all(real.labels is None for real in unconditional.real)
    assert torch.equal(unconditional.real[0].clean, seen.real[0].clean)


# --- directions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diff_instruct", "sid", "dmd2"])
def test_a_student_learns_a_teachers_images_from_scores(name: str) -> None:
    """The teacher is the exact denoiser of a point; students must end there."""

    class Point(torch.nn.Module):
        sigma_data, num_labels, network = 0.5, 0, torch.nn.Identity()

        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return (0.6 + 0.0 * x) * 0.95 + 0.05 * x

    config = DistillConfig(images=8 * 40, batch=8, direction=name, lr=6e-3, ratio_lr=1e-2, ema_half_life=30)
    training = start_distillation(build_denoiser(TINY, 0.5, 0), build_denoiser(TINY, 0.5, 0), config)
    z = torch.randn(100, 1, 4, 4, generator=torch.Generator().manual_seed(7))

    def gap() -> float:
        with torch.no_grad():
            made = OneStepGenerator(training.networks["ema"], config.sigma_init)(z)
        return float((made - 0.6).square().mean().sqrt())

    before = gap()
    told = [step.metrics for step in distill(training, images(), config, seed=0, teacher=Point())]
    assert gap() < 0.5 * before
    assert set(told[-1]) == {"fake_score_loss", "gradient_norm"}


@pytest.mark.parametrize(
    ("config", "kind", "weighting", "dropout"),
    [
        (changed(), RatioDirection, "sigma_squared", None),
        (changed(direction="diff_instruct"), DiffInstruct, "sigma_squared", True),
        (changed(direction="dmd2"), DiffInstruct, "normalised", False),
        (changed(direction="sid", alpha=1.0), SiD, "normalised", False),
        (changed(direction="sid", weighting="edm"), SiD, "edm", False),
    ],
)
def test_settings_make_the_direction(config: DistillConfig, kind: type, weighting: str, dropout) -> None:
    made = make_direction(config, started(config), make_teacher())
    assert type(made) is kind
    assert made.weighting.name == weighting
    assert getattr(made, "dropout", None) is dropout
    if kind is SiD:
        assert made.alpha == config.alpha


def test_clip_and_divergence_reach_the_ratio_direction() -> None:
    made = make_direction(changed(divergence="forward_kl", clip=1.0), started())
    assert float(made.divergence.weight(torch.tensor(9.0))) == pytest.approx(2.71828, rel=1e-4)


def test_a_head_on_the_fake_score_learns_both_losses() -> None:
    config = changed(ratio=RatioConfig(kind="fake_score"), denoising_weight=0.5)
    training = started(config)
    network = training.networks["ratio"]
    assert isinstance(network, FakeScoreRatio)
    numbers = torch.Generator().manual_seed(3)
    sigma = torch.tensor([0.2, 1.0, 3.0])
    real, fake = (
        Noised.of(
            torch.randn(3, 1, 4, 4, generator=numbers), sigma, torch.randn(3, 1, 4, 4, generator=numbers)
        )
        for _ in range(2)
    )
    loss, told = make_direction(config, training).critic_loss(real, fake)
    denoising = denoising_loss(network.denoiser(fake.x, sigma), fake, 0.5) / 16
    cross_entropy = ratio_loss(network(real.x, sigma), network(fake.x, sigma))
    torch.testing.assert_close(loss, cross_entropy + 0.5 * denoising)
    torch.testing.assert_close(told["fake_score_loss"], denoising)
    step = next(distill(training, images(), config, seed=0))
    assert set(step.metrics) == {"ratio_loss", "h_real", "h_fake", "fake_score_loss", "gradient_norm"}


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"direction": "rato"}, "unknown direction 'rato': did you mean 'ratio'"),
        ({"divergence": "forward_lk"}, "unknown divergence 'forward_lk': did you mean 'forward_kl'"),
        ({"fake_labels": "partners"}, "unknown fake_labels 'partners': did you mean 'partner'"),
        ({"warmup": 48}, "warmup must be below images, or the student never moves; got 48 and 48"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"critic_updates": 0}, "critic_updates must be above 0"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"ema_half_lives": (5, 5)}, "ema_half_lives names a value twice"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        changed(**settings)


def test_a_score_direction_without_a_teacher_is_one_clear_line() -> None:
    config = changed(direction="sid")
    with pytest.raises(UsageError, match="'sid' compares with a teacher's denoiser, and none was given"):
        next(distill(started(config), images(), config, seed=0))


def test_a_critic_of_the_other_family_is_refused() -> None:
    student, ratio = build_denoiser(TINY, 0.5, 0), RatioNetwork(TINY, 0.5)
    with pytest.raises(UsageError, match="needs a ratio network as critic, got a denoiser"):
        start_distillation(student, student, CONFIG)
    with pytest.raises(UsageError, match="the fake score, as critic, got a RatioNetwork"):
        start_distillation(student, ratio, changed(direction="dmd2"))
    with pytest.raises(UsageError, match="needs the network 'fake_score', which this training does not hold"):
        make_direction(changed(direction="dmd2"), started(), make_teacher())
    with pytest.raises(UsageError, match="same number of classes, got 0 and 4"):
        start_distillation(student, RatioNetwork(LABELLED, 0.5), CONFIG)


def test_labels_that_do_not_fit_the_student_are_refused() -> None:
    def first(network, labels: Tensor | None, **settings: object) -> None:
        next(distill(started(network=network), images(), changed(**settings), 0, labels))

    with pytest.raises(UsageError, match="conditional on 4 classes, but the images have no labels"):
        first(LABELLED, None)
    with pytest.raises(UsageError, match="the images have 20 classes, but the student knows 4"):
        first(LABELLED, torch.arange(20))
    with pytest.raises(UsageError, match="class-balanced batches need labels"):
        first(TINY, None, balanced=True)
    with pytest.raises(UsageError, match="this one has no classes"):
        first(TINY, LABELS, fake_labels="balanced")
