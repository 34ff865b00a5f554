"""Parts of a batch equal the whole; no gradient reaches a network that is not updated; own directions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from featlens.errors import UsageError
from featlens_trainers import DistillConfig, distill
from featlens_trainers.directions import Noised, RatioDirection, resolve_divergence
from featlens_trainers.engine import Engine
from tests.distill_helpers import (
    CONFIG,
    FAKE_SCORE_HEAD,
    TINY,
    LeakWatch,
    images,
    make_teacher,
    started,
    weights,
)

KINDS: dict[str, DistillConfig] = {
    "ratio": CONFIG,
    "three updates": dataclasses.replace(CONFIG, divergence="js", critic_updates=3, warmup=8),
    "head": dataclasses.replace(CONFIG, ratio=FAKE_SCORE_HEAD),
    "diff_instruct": dataclasses.replace(CONFIG, direction="diff_instruct"),
    "sid": dataclasses.replace(CONFIG, direction="sid"),
    "dmd2": dataclasses.replace(CONFIG, direction="dmd2", critic_updates=2),
}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_reproduce_the_whole(kind: str, parts: int) -> None:
    config = dataclasses.replace(KINDS[kind], images=16)
    trainings, told = [], []
    for accumulate in (1, parts):
        # Plain descent: Adam would turn rounding in almost-zero gradients into steps of full size.
        training = started(config, plain_sgd=True)
        for optimizer in training.optimizers.values():
            optimizer.param_groups[0]["lr"] = 1e-3
        engine = Engine(accumulate=accumulate)
        steps = list(distill(training, images(), config, 0, engine=engine, teacher=make_teacher()))
        trainings.append(training)
        told.append([dict(step.metrics) for step in steps])
    for name in trainings[0].networks:
        torch.testing.assert_close(
            weights(trainings[1], name), weights(trainings[0], name), rtol=1e-4, atol=1e-5
        )
    for one, other in zip(*told, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_dropout_of_a_part_depends_on_its_place_alone() -> None:
    """Two processes of one part each draw what one process of two parts does."""
    network = dataclasses.replace(TINY, dropout=0.4)

    class Half(Engine):
        """One of two processes, alone: it sees its half of the batch."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def parts(self, batch: int) -> list[slice]:
            return [slice(4 * self.number, 4 * self.number + 4)]

    def generated(engine: Engine) -> list[Tensor]:
        training = started(network=network)
        seen: list[Tensor] = []

        class Seen(RatioDirection):
            def critic_loss(self, real: Noised, fake: Noised):
                seen.append(fake.clean)
                return super().critic_loss(real, fake)

            def image_gradient(self, fake: Noised) -> Tensor:
                seen.append(fake.clean)
                return super().image_gradient(fake)

        direction = Seen(training.networks["ratio"], resolve_divergence("js"))
        next(distill(training, images(), CONFIG, 0, direction=direction, engine=engine))
        return seen

    first, second, first_again, second_again = generated(Engine(accumulate=2))
    # The generator's graph was not kept, and the same images came again.
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)
    assert torch.equal(generated(Half(0))[0], first)
    assert torch.equal(generated(Half(1))[0], second)


# --- leaks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_ever_reaches_a_network_that_is_not_updated(kind: str, parts: int) -> None:
    config = dataclasses.replace(KINDS[kind], images=24)
    training, engine = started(config), Engine(accumulate=parts)
    # A teacher that could take gradients.
    teacher = make_teacher().requires_grad_(True)
    with LeakWatch(engine, training, teacher) as watch:
        for _ in distill(training, images(), config, 0, engine=engine, teacher=teacher):
            pass
    critic = "ratio" if config.direction == "ratio" else "fake_score"
    assert watch.leaks == {}
    assert watch.updates == {critic: 3 * config.critic_updates, "net": 3 - config.warmup // 8}
    assert watch.counts[critic, critic] > 0
    assert watch.counts["net", "net"] > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_watch_sees_a_leak() -> None:
    training = started()

    class Leaky(Engine):
        """As it was measured in a published trainer: the generator's loss also runs through the critic."""

        def update(self, optimizer, losses) -> None:
            if optimizer is training.optimizers["net"]:
                losses = [
                    loss + training.networks["ratio"](images(2), torch.ones(2)).sum() for loss in losses
                ]
            super().update(optimizer, losses)

    engine = Leaky()
    with LeakWatch(engine, training) as watch:
        next(distill(training, images(), CONFIG, 0, engine=engine))
    assert watch.leaks["net", "ratio"] > 0


def test_a_direction_with_a_graph_leaks_nothing() -> None:
    """A direction of the user's may forget to detach; the loop takes its numbers only."""
    training, engine = started(), Engine()

    class Careless(RatioDirection):
        def image_gradient(self, fake: Noised) -> Tensor:
            x = fake.x.requires_grad_()
            (out,) = torch.autograd.grad(self.network(x, fake.sigma).sum(), x, create_graph=True)
            return -out * self.network(fake.x, fake.sigma)[:, None, None, None]

    direction = Careless(training.networks["ratio"], resolve_divergence("js"))
    with LeakWatch(engine, training) as watch:
        next(distill(training, images(), CONFIG, 0, direction=direction, engine=engine))
    assert watch.leaks == {}


# --- directions of one's own --------------------------------------------------------------------------------


class TowardsZero:
    """Pulls every pixel towards 0 and trains nothing to speak of."""

    critic = "ratio"

    def __init__(self, network: nn.Module, cut: int | None = None) -> None:
        self.network, self.cut = network, cut

    def critic_loss(self, real: Noised, fake: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.network(real.x, real.sigma).square().mean()
        return loss, {"size": loss}

    def image_gradient(self, fake: Noised) -> Tensor:
        return fake.clean[:, : self.cut]


def test_a_direction_of_ones_own_moves_the_student() -> None:
    config = dataclasses.replace(CONFIG, images=8 * 40, lr=5e-3)
    training = started(config)
    direction = TowardsZero(training.networks["ratio"])
    told = [step.metrics for step in distill(training, images(), config, 0, direction=direction)]
    assert told[-1]["gradient_norm"] < 0.3 * told[0]["gradient_norm"]
    assert set(told[0]) == {"size", "gradient_norm"}


def test_a_direction_that_does_not_fit_is_refused() -> None:
    training = started()
    direction = TowardsZero(training.networks["ratio"], cut=0)
    with pytest.raises(UsageError, match=r"expected \(8, 1, 4, 4\), got \(8, 0, 4, 4\)"):
        next(distill(training, images(), CONFIG, 0, direction=direction))
    direction.critic = "ration"  # type: ignore[misc]
    with pytest.raises(
        UsageError, match="critic 'ration', which this training does not hold: did you mean 'ratio'"
    ):
        next(distill(training, images(), CONFIG, 0, direction=direction))
