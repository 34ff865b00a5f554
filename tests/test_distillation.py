"""Score-free distillation: one step re-derived, the two networks kept apart, and exact resumption."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers import (
    DIVERGENCES,
    DistillConfig,
    OneStepGenerator,
    RatioNetwork,
    Step,
    Training,
    build_denoiser,
    distill,
    distillation,
    start_distillation,
)
from featlens_trainers.directions import RatioDirection, make, ratio_loss
from featlens_trainers.runs import Run
from featlens_trainers.settings import NoiseConfig
from featlens_trainers.training import TrainingError
from tests.distill_helpers import CONFIG, TINY, assert_equal, images, make_teacher, started, weights


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


# --- one step -----------------------------------------------------------------------------------------------


class Watched:
    """One step of plain gradient descent at rate 1, with everything that passed between the networks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: DistillConfig = CONFIG) -> None:
        self.training = started(config, plain_sgd=True)
        self.ratio_calls: list[tuple[Tensor, Tensor]] = []
        self.directions: list[tuple[Tensor, Tensor, Tensor]] = []
        self.fakes: list[Tensor] = []
        watched = self

        class Spy(RatioDirection):
            def gradient(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
                watched.ratio_before_direction = weights(watched.training, "ratio")
                out = super().gradient(x, sigma, labels)
                watched.directions.append((x.detach().clone(), sigma.clone(), out.clone()))
                return out

        monkeypatch.setattr(make, "RatioDirection", Spy)
        self.training.networks["net"].register_forward_hook(lambda _, inputs, out: self.fakes.append(out))
        self.training.networks["ratio"].register_forward_pre_hook(
            lambda _, inputs: self.ratio_calls.append((inputs[0].detach().clone(), inputs[1].clone()))
        )
        self.start = {name: weights(self.training, name) for name in ("net", "ratio", "ema")}
        self.real = images()
        self.step = next(distill(self.training, self.real, config, seed=0))


def test_ratio_network_is_trained_on_equally_noised_halves(monkeypatch) -> None:
    watched = Watched(monkeypatch)
    x, sigma = watched.ratio_calls[0]
    assert x.shape == (16, 1, 4, 4)
    assert torch.equal(sigma[:8], sigma[8:])
    assert len(set(sigma[:8].tolist())) == 8
    scaled = (x[8:] - watched.fakes[0].detach()) / sigma[8:, None, None, None]
    assert float(scaled.std()) == pytest.approx(1, abs=0.2)
    # Each real image differs from one of the data set by noise of its level, and by another draw of it.
    distance = (x[:8, None] - watched.real[None]).flatten(2).norm(dim=2) / sigma[:8, None]
    assert float(distance.min(1).values.max()) < 8
    other = (x[:8] - watched.real[distance.argmin(1)]) / sigma[:8, None, None, None]
    assert not torch.allclose(other, scaled, atol=0.5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_ratio_network_descends_its_classification_loss(monkeypatch, divergence: str) -> None:
    watched = Watched(monkeypatch, dataclasses.replace(CONFIG, divergence=divergence))
    x, sigma = watched.ratio_calls[0]
    reference = RatioNetwork(TINY, 0.5)
    reference.load_state_dict(watched.start["ratio"])
    logits = reference(x, sigma)
    loss = ratio_loss(logits[:8], logits[8:])
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    for (name, before), gradient in zip(watched.start["ratio"].items(), gradients, strict=True):
        moved = weights(watched.training, "ratio")[name] - before
        torch.testing.assert_close(moved, -gradient, rtol=1e-3, atol=1e-5)
    assert watched.step.metrics["ratio_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert watched.step.metrics["h_real"] == pytest.approx(float(logits[:8].mean().detach()), abs=1e-5)
    assert watched.step.metrics["h_fake"] == pytest.approx(float(logits[8:].mean().detach()), abs=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_generator_descends_the_noised_divergence_weighted_by_sigma_squared(monkeypatch, divergence) -> None:
    watched = Watched(monkeypatch, dataclasses.replace(CONFIG, divergence=divergence))
    x, sigma, gradient = watched.directions[0]
    ratio = RatioNetwork(TINY, 0.5)
    ratio.load_state_dict(watched.ratio_before_direction)
    student = build_denoiser(TINY, 0.5, 0)
    student.load_state_dict(watched.start["net"])
    # The same latents, recovered from what the student was called with.
    fake = watched.fakes[0]
    noise = x - fake.detach()
    assert float((noise / sigma[:, None, None, None]).std()) == pytest.approx(1, abs=0.2)
    generator = OneStepGenerator(student, CONFIG.sigma_init)
    z = torch.randn(8, 1, 4, 4, generator=distillation.stream(0, "distill", 0))
    torch.testing.assert_close(generator(z), fake)
    # Frozen ratio network: the surrogate's gradient in the image, then the chain rule by hand.
    loss = (sigma**2 * DIVERGENCES[divergence].surrogate(ratio(generator(z) + noise, sigma))).mean()
    expected = torch.autograd.grad(loss, list(student.parameters()))
    for (name, before), wanted in zip(watched.start["net"].items(), expected, strict=True):
        moved = weights(watched.training, "net")[name] - before
        torch.testing.assert_close(moved, -wanted, rtol=1e-3, atol=1e-5)
    norm = (sigma[:, None, None, None] ** 2 * gradient).flatten(1).norm(dim=1).mean()
    assert watched.step.metrics["gradient_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_each_network_gets_gradients_from_its_own_loss_only(monkeypatch) -> None:
    training = started()
    counts = {"net": 0, "ratio": 0}

    def count(name: str) -> None:
        counts[name] += 1

    for name in counts:
        next(training.networks[name].parameters()).register_hook(lambda grad, name=name: count(name))
    snapshots: list[dict[str, Tensor]] = []
    gradients: list[list[Tensor]] = []

    class Spy(RatioDirection):
        def gradient(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            snapshots.append(weights(training, "ratio"))
            gradients.append([p.grad.clone() for p in training.networks["ratio"].parameters()])
            return super().gradient(x, sigma, labels)

    monkeypatch.setattr(make, "RatioDirection", Spy)
    for number, _ in enumerate(distill(training, images(), CONFIG, seed=0), start=1):
        assert counts == {"net": number, "ratio": number}
        after = weights(training, "ratio")
        assert all(torch.equal(after[key], value) for key, value in snapshots[-1].items())
        now = [p.grad for p in training.networks["ratio"].parameters()]
        assert all(torch.equal(a, b) for a, b in zip(now, gradients[-1], strict=True))
    assert not any(p.requires_grad for p in training.networks["ema"].parameters())


# --- the loop -----------------------------------------------------------------------------------------------


def test_loop_counts_images_and_averages_the_student() -> None:
    training = started()
    expected = weights(training, "ema")
    seen = []
    for step in distill(training, images(), CONFIG, seed=0):
        seen.append(step.images)
        decay = 0.5 ** (8 / min(16, 0.5 * step.images))
        live = weights(training, "net")
        expected = {key: decay * mean + (1 - decay) * live[key] for key, mean in expected.items()}
    assert seen == [8, 16, 24, 32, 40, 48]
    torch.testing.assert_close(weights(training, "ema"), expected)


def test_settings_reach_the_optimisers() -> None:
    training = started(dataclasses.replace(CONFIG, lr=0.25, ratio_lr=0.5, beta1=0.1, beta2=0.7))
    groups = {name: optimizer.param_groups[0] for name, optimizer in training.optimizers.items()}
    assert {name: (group["lr"], group["betas"]) for name, group in groups.items()} == {
        "net": (0.25, (0.1, 0.7)),
        "ratio": (0.5, (0.1, 0.7)),
    }


@pytest.mark.parametrize("divergence", ["reverse_kl", "js", "forward_kl"])
def test_a_random_student_moves_onto_the_data(divergence: str) -> None:
    config = DistillConfig(
        images=16 * 70, batch=16, divergence=divergence, lr=6e-3, ratio_lr=1.2e-2, ema_half_life=100
    )
    training = start_distillation(build_denoiser(TINY, 0.5, 0), RatioNetwork(TINY, 0.5), config)
    data = 0.6 + 0.1 * images(64)
    z = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(7))

    def gap() -> float:
        with torch.no_grad():
            made = OneStepGenerator(training.networks["ema"], config.sigma_init)(z)
        return abs(float(made.mean() - data.mean()))

    before = gap()
    for _ in distill(training, data, config, seed=0):
        pass
    assert before > 0.4
    assert gap() < 0.25


def test_labels_of_the_real_images_are_asked_of_the_student_and_told_to_the_ratio_network(
    monkeypatch,
) -> None:
    network = dataclasses.replace(TINY, labels=20)
    training = started(network=network)
    asked: dict[str, list[Tensor]] = {"net": [], "ratio": []}
    for name, calls in asked.items():
        training.networks[name].register_forward_pre_hook(
            lambda _, inputs, calls=calls: calls.append(inputs[2].clone())
        )
    coded = torch.arange(20.0)[:, None, None, None].expand(20, 1, 4, 4).contiguous()
    small = dataclasses.replace(CONFIG, images=8, noise=NoiseConfig(mean=-8.0, std=0.1))
    halves = []
    training.networks["ratio"].register_forward_pre_hook(lambda _, inputs: halves.append(inputs[0].detach()))
    list(distill(training, coded, small, 0, torch.arange(20)))
    rows = halves[0][:8].mean((1, 2, 3)).round().long()
    assert torch.equal(asked["net"][0], rows)
    assert torch.equal(asked["ratio"][0], rows.repeat(2))
    assert torch.equal(asked["ratio"][1], rows)


@pytest.mark.parametrize(
    ("broken", "what"), [("ratio", "the ratio network's loss"), ("net", "the ratio network's loss")]
)
def test_numbers_that_are_not_finite_stop_training_before_a_weight_moves(broken: str, what: str) -> None:
    training = started()
    with torch.no_grad():
        next(training.networks[broken].parameters()).fill_(float("nan"))
    before = weights(training, "ratio" if broken == "net" else "net")
    with pytest.raises(TrainingError, match=f"{what} became nan after 0 images; lower the learning rate"):
        list(distill(training, images(), CONFIG, seed=0))
    after = weights(training, "ratio" if broken == "net" else "net")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_direction_that_is_not_finite_stops_before_the_generator_moves() -> None:
    class Broken(RatioDirection):
        def gradient(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return torch.full_like(x, float("inf"))

    training = started()
    before = weights(training, "net")
    broken = Broken(training.networks["ratio"], DIVERGENCES["reverse_kl"])
    with pytest.raises(TrainingError, match="the generator's gradient became"):
        list(distill(training, images(), CONFIG, seed=0, direction=broken))
    assert all(torch.equal(value, before[name]) for name, value in weights(training, "net").items())


def test_images_that_are_not_finite_are_refused_by_number() -> None:
    data = images()
    data[3, 0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="image 3 holds NaN"):
        list(distill(started(), data, CONFIG, seed=0))


# --- randomness and resumption ------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_distillation_depends_on_its_seed_and_on_nothing_else(dropout: float) -> None:
    network = dataclasses.replace(TINY, dropout=dropout)
    trainings = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        training = started(network=network)
        for _ in distill(training, images(), CONFIG, seed=3):
            torch.rand(5)
        trainings.append(training)
    assert_equal(*trainings)
    state = torch.random.get_rng_state()
    other = started(network=network)
    list(distill(other, images(), CONFIG, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "network.enc.4x4_conv.weight"
    assert not torch.equal(weights(other, "net")[name], weights(trainings[0], "net")[name])


RESUMED = {
    "default": CONFIG,
    "js": dataclasses.replace(CONFIG, divergence="js"),
    "everything": dataclasses.replace(
        CONFIG,
        divergence="jeffreys",
        critic_updates=2,
        warmup=16,
        ramp_images=40,
        critic_noise=NoiseConfig("rho"),
        ema_half_lives=(32,),
        ema_powers=(0.1,),
    ),
    "diff_instruct": dataclasses.replace(CONFIG, direction="diff_instruct"),
    "sid": dataclasses.replace(CONFIG, direction="sid"),
    "dmd2": dataclasses.replace(CONFIG, direction="dmd2", critic_updates=3),
}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", RESUMED)
def test_distillation_resumes_bit_for_bit(tmp_path: Path, name: str, dropout: float) -> None:
    config = RESUMED[name]
    network = dataclasses.replace(TINY, dropout=dropout)
    teacher = make_teacher(network)
    critic = "ratio" if config.direction == "ratio" else "fake_score"

    def steps(training: Training) -> Iterator[Step]:
        return distill(training, images(), config, seed=0, teacher=teacher)

    whole = started(config, network)
    list(steps(whole))
    with Run(tmp_path, "test", {}) as run:
        training = started(config, network)
        for step in run.drive(training, steps(training), config.images, save_every=10**9):
            if step.images == 24:
                run.save(training)
                break
    again = started(config, network)
    with torch.no_grad():
        for parameter in again.networks[critic].parameters():
            parameter += 1.0
    with Run(tmp_path, "test", {}) as run:
        assert run.restore(again) == []
        list(run.drive(again, steps(again), config.images, save_every=10**9))
    assert_equal(again, whole)
