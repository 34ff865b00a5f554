"""What all loops share: batches, noise levels, learning rate, and a state that can be saved and loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from featlens.errors import FeatlensError
from featlens_trainers.batches import Batches
from featlens_trainers.data import TensorData
from featlens_trainers.ema import HalfLife, Power, ema_copy
from featlens_trainers.engine import Engine
from featlens_trainers.noise import lognormal_sigma
from featlens_trainers.training import (
    Average,
    Step,
    Training,
    TrainingError,
    finite,
    learning_rate,
    optimise,
    seeded,
    set_learning_rate,
    stream,
    update,
    why_not_finite,
)

# --- random streams -----------------------------------------------------------------------------------------


def test_a_stream_depends_on_its_names_alone() -> None:
    def draw(*names: int | str) -> list[float]:
        torch.rand(7)
        return torch.rand(3, generator=stream(*names)).tolist()

    assert draw(0, "teacher", 64) == draw(0, "teacher", 64)
    draws = [draw(0, "teacher", 64), draw(1, "teacher", 64), draw(0, "map", 64), draw(0, "teacher", 128)]
    assert all(draws.count(one) == 1 for one in draws)


def test_seeded_blocks_repeat_and_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(0, "a"):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(0, "a"):
        assert torch.equal(torch.rand(2), first)
    with seeded(0, "b"):
        assert not torch.equal(torch.rand(2), first)


# --- batches ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3))
def test_every_row_comes_once_an_epoch_whatever_the_batch(rows: int, batch: int, seed: int) -> None:
    batches = Batches(rows, batch, seed)
    steps = math.ceil(3 * rows / batch)
    drawn = torch.cat([batches(step * batch) for step in range(steps)])
    assert len(drawn) == steps * batch
    for epoch in range(3):
        assert sorted(drawn[epoch * rows : (epoch + 1) * rows].tolist()) == list(range(rows))


def test_order_of_rows_depends_on_images_seen_and_seed_but_not_on_batch_or_history() -> None:
    whole = torch.cat([Batches(30, 10, 7)(first) for first in range(0, 90, 10)])
    for batch in (1, 45, 90):
        batches = Batches(30, batch, 7)
        assert torch.equal(torch.cat([batches(first) for first in range(0, 90, batch)]), whole)
    assert torch.equal(Batches(30, 10, 7)(50), whole[50:60])
    assert not torch.equal(Batches(30, 90, 8)(0), whole)
    assert not torch.equal(whole[:30], whole[30:60])


# --- noise levels -------------------------------------------------------------------------------------------


def test_noise_levels_are_lognormal_with_one_draw_from_each_quantile() -> None:
    sigma = lognormal_sigma(64, -1.2, 1.2, stream(0))
    assert sigma.shape == (64,)
    assert sigma.dtype == torch.float32
    quantile = torch.special.ndtr((sigma.double().log() + 1.2) / 1.2)
    assert sorted((quantile * 64).floor().int().tolist()) == list(range(64))


def test_noise_levels_have_the_asked_mean_and_spread_and_no_order() -> None:
    draws = torch.stack([lognormal_sigma(32, 0.5, 0.7, stream(seed)).log() for seed in range(300)])
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.std()) == pytest.approx(0.7, abs=0.01)
    # Each position of the batch gets every quantile: neither its mean nor its neighbour tells it.
    assert float(draws.mean(0).std()) < 0.1


def test_a_batch_of_one_covers_the_whole_range() -> None:
    draws = torch.cat([lognormal_sigma(1, 0.0, 1.0, stream(seed)) for seed in range(400)]).log()
    assert float(draws.mean()) == pytest.approx(0.0, abs=0.2)
    assert float(draws.std()) == pytest.approx(1.0, abs=0.15)


# --- learning rate ------------------------------------------------------------------------------------------


def test_learning_rate_rises_stays_and_falls() -> None:
    constant = [learning_rate(images, 2.0, 100) for images in (1, 25, 100, 5_000)]
    assert constant == pytest.approx([0.02, 0.5, 2.0, 2.0])
    falling = [learning_rate(images, 2.0, 100, 300) for images in (100, 150, 200, 250, 300, 900)]
    assert falling == pytest.approx([2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5), 0.0, 0.0])
    assert learning_rate(0, 2.0, 0) == 2.0
    assert learning_rate(500, 2.0, 1_000, 800) == pytest.approx(1.0)
    assert learning_rate(1_000, 2.0, 1_000, 800) == 2.0


def test_the_rate_is_set_in_every_group() -> None:
    layers = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": layer.parameters(), "lr": 1.0} for layer in layers])
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


# --- steps --------------------------------------------------------------------------------------------------


def test_optimise_forgets_the_gradients_of_the_step_before() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.full((1,), 100.0)
    optimise(optimizer, (3.0 * weight).sum())
    assert weight.tolist() == [-3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_training_and_says_where(value: float) -> None:
    with pytest.raises(TrainingError, match=r"the loss became -?(nan|inf) after 12,800 images") as caught:
        finite(torch.tensor(value), "the loss", 12_800)
    assert "lower the learning rate" in str(caught.value)
    assert finite(torch.tensor(1.5), "the loss", 0) == 1.5


def halves(weight: nn.Parameter, values: list[float]) -> Iterator[torch.Tensor]:
    """One loss for each part of a batch, d loss / d weight = value."""
    for value in values:
        yield (weight * value).sum()


def test_an_update_is_on_the_mean_over_the_parts_and_returns_it() -> None:
    weight = nn.Parameter(torch.full((1,), 2.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    mean = update(Engine(accumulate=2), optimizer, halves(weight, [1.0, 4.0]), "the loss", 0)
    assert mean == 5.0
    assert weight.tolist() == [-0.5]


def test_an_update_that_is_not_finite_moves_no_weight_and_gives_its_advice() -> None:
    weight = nn.Parameter(torch.full((1,), 2.0))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    losses = halves(weight, [1.0, math.nan])
    with pytest.raises(TrainingError, match=r"the loss became nan after 640 images; look at the data"):
        update(Engine(accumulate=2), optimizer, losses, "the loss", 640, lambda: "look at the data")
    assert weight.tolist() == [2.0]


def test_images_that_are_not_finite_are_named() -> None:
    images = torch.zeros(9, 1, 2, 2)
    rows = torch.tensor([8, 3, 5])
    assert why_not_finite(TensorData(images), rows) == "lower the learning rate"
    images[3, 0, 1, 1] = math.nan
    images[8, 0, 0, 0] = -math.inf
    images[1] = math.nan  # not in this batch
    assert why_not_finite(TensorData(images), rows).startswith("images 3, 8 of the data hold values that")


# --- state --------------------------------------------------------------------------------------------------


def made(seed: int, width: int = 3) -> Training:
    with seeded(seed):
        first, second = nn.Linear(2, width), nn.BatchNorm1d(2)
    return Training(
        {"net": first, "ema": ema_copy(first), "ratio": second},
        {
            "net": torch.optim.Adam(first.parameters(), lr=0.1),
            "ratio": torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9),
        },
        {"ema": Average("net", HalfLife(100, 1.0))},
    )


def advance(training: Training, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(4, 2, generator=stream(0, training.images))
        optimise(training.optimizers["ratio"], training.networks["ratio"](x).square().sum())
        optimise(training.optimizers["net"], training.networks["net"](x).square().sum())
        training.advance(4)


def test_state_goes_on_bit_for_bit_in_other_objects() -> None:
    whole, half, other = made(0), made(0), made(9)
    advance(whole, 6)
    advance(half, 2)
    saved = {name: tensor.clone() for name, tensor in half.tensors().items()}
    advance(half, 3)
    other.load_tensors(saved, images=8)
    advance(other, 4)
    assert other.images == whole.images == 24
    names = set(whole.tensors())
    assert set(other.tensors()) == names
    assert all(torch.equal(other.tensors()[name], whole.tensors()[name]) for name in names)
    assert {name.split("/")[0] + "/" + name.split("/")[1] for name in names} == {
        *("net/net", "net/ema", "net/ratio", "opt/net", "opt/ratio")
    }
    assert "opt/net/net/weight/exp_avg_sq" in names
    assert "opt/ratio/ratio/bias/momentum_buffer" in names


def test_a_loaded_state_shares_no_memory_with_its_source() -> None:
    source, target = made(0), made(1)
    advance(source, 1)
    saved = source.tensors()
    target.load_tensors(saved, source.images)
    before = {name: tensor.clone() for name, tensor in saved.items()}
    advance(target, 2)
    assert all(torch.equal(saved[name], before[name]) for name in before)


def test_a_state_from_before_the_first_step_clears_the_optimisers_memory() -> None:
    fresh, used = made(0), made(0)
    start = {name: tensor.clone() for name, tensor in fresh.tensors().items()}
    advance(used, 3)
    used.load_tensors(start, 0)
    advance(used, 2)
    advance(fresh, 2)
    assert all(torch.equal(used.tensors()[name], tensor) for name, tensor in fresh.tensors().items())


def several(seed: int) -> Training:
    training = made(seed)
    more = {"ema-50": HalfLife(50, 0.5), "ema-power0.1": Power(0.1)}
    for name, profile in more.items():
        training.networks[name] = ema_copy(training.networks["net"])
        training.averages[name] = Average("net", profile)
    return training


def test_several_averages_and_notes_go_on_bit_for_bit() -> None:
    whole, half, other = several(0), several(0), several(9)
    for training, steps in ((whole, 6), (half, 2)):
        for _ in range(steps):
            advance(training, 1)
            training.notes["seen"] = [*training.notes.get("seen", []), training.images * 0.1]
    other.notes = {"stale": 1}
    other.load_tensors({name: tensor.clone() for name, tensor in half.tensors().items()}, images=8)
    assert other.notes == half.notes == {"seen": [0.4, 0.8]}
    for _ in range(4):
        advance(other, 1)
        other.notes["seen"].append(other.images * 0.1)
    assert other.notes == whole.notes
    assert set(other.tensors()) == set(whole.tensors())
    assert all(torch.equal(other.tensors()[name], value) for name, value in whole.tensors().items())
    averages = [whole.networks[name].weight for name in whole.averages]
    assert len(averages) == 3
    assert not any(torch.equal(averages[i], averages[j]) for i in range(3) for j in range(i))


def test_an_average_follows_the_network_that_is_there_now() -> None:
    training = made(0)
    advance(training, 1)
    training.networks["net"] = ema_copy(made(5).networks["net"])
    training.networks["ema"] = ema_copy(training.networks["net"])
    with torch.no_grad():
        training.networks["net"].weight += 1.0
    before = training.networks["ema"].weight.clone()
    training.advance(10**6)
    torch.testing.assert_close(training.networks["ema"].weight, before + 1.0)


def test_notes_hold_what_json_holds_and_a_state_without_notes_clears_them() -> None:
    training, other = made(0), made(0)
    training.notes = {"by bin": {"0": [1, 2.5, None, True]}, "name": "ünï", "third": 1 / 3}
    other.load_tensors(training.tensors(), 0)
    assert other.notes == training.notes
    other.load_tensors(made(0).tensors(), 0)
    assert other.notes == {}
    assert "notes" not in made(0).tensors()


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff"])
def test_notes_that_are_damaged_are_refused_and_change_nothing(text: bytes) -> None:
    training = made(0)
    training.notes = {"kept": 1}
    tensors = made(1).tensors() | {"notes": torch.tensor(list(text), dtype=torch.uint8)}
    before = {name: tensor.clone() for name, tensor in training.tensors().items()}
    with pytest.raises(FeatlensError, match=r"notes of the state .*use an earlier state"):
        training.load_tensors(tensors, 100)
    assert training.notes == {"kept": 1}
    assert all(torch.equal(training.tensors()[name], tensor) for name, tensor in before.items())


def test_a_refusal_lists_tensors_with_both_shapes() -> None:
    with pytest.raises(FeatlensError) as caught:
        made(0).load_tensors(made(0, width=4).tensors(), 0)
    message = str(caught.value)
    assert "net/net/weight (4, 2) there, (3, 2) here; net/net/bias (4,) there, (3,) here" in message
    assert "\n" not in message


def test_a_refusal_names_whole_networks_that_are_missing_or_too_many() -> None:
    with pytest.raises(FeatlensError, match="network 'ema-50' is missing there") as caught:
        several(0).load_tensors(made(0).tensors(), 0)
    assert "ema-50/weight" not in str(caught.value)
    with pytest.raises(FeatlensError, match=r"network 'ema-power0\.1' is only there"):
        made(0).load_tensors(several(0).tensors(), 0)


def test_many_differences_are_counted() -> None:
    training = Training({"net": nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])})
    other = Training({"net": nn.Sequential(*[nn.Linear(3, 3) for _ in range(5)])})
    with pytest.raises(FeatlensError, match=r"and 6 more; go on with the settings"):
        training.load_tensors(other.tensors(), 0)


@pytest.mark.parametrize("change", ["shape", "missing", "more"])
def test_the_state_of_another_network_is_refused_and_changes_nothing(change: str) -> None:
    training, other = made(0), made(1, width=4 if change == "shape" else 3)
    tensors = dict(other.tensors())
    if change == "missing":
        del tensors["net/ratio/running_mean"]
    if change == "more":
        tensors["net/ratio/extra"] = torch.zeros(1)
    before = {name: tensor.clone() for name, tensor in training.tensors().items()}
    named = {"shape": "net/net/weight", "missing": "running_mean", "more": "extra"}[change]
    with pytest.raises(FeatlensError, match=named):
        training.load_tensors(tensors, 100)
    assert training.images == 0
    assert all(torch.equal(training.tensors()[name], tensor) for name, tensor in before.items())


def test_a_step_is_a_frozen_record() -> None:
    step = Step(64, {"loss": 1.0})
    with pytest.raises(AttributeError):
        step.images = 0  # type: ignore[misc]
