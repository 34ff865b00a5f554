"""Batches: every image once per epoch, classes exactly balanced, a pure function of the images seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from featlens.errors import UsageError
from featlens_trainers.batches import Batches, balanced_labels
from featlens_trainers.training import stream

LABELS = torch.tensor([0] * 7 + [1] * 2 + [3] * 12 + [2] * 4)[torch.randperm(25, generator=stream(0, "x"))]


def series(batches: Batches, count: int) -> list[Tensor]:
    return [batches(number * batches.batch) for number in range(count)]


@pytest.mark.parametrize("batch", [5, 8, 25, 60])
def test_every_image_comes_once_per_epoch(batch: int) -> None:
    rows = torch.cat(series(Batches(25, batch, 0), 50))
    for epoch in range(len(rows) // 25):
        assert sorted(rows[epoch * 25 : (epoch + 1) * 25].tolist()) == list(range(25))
    assert rows[:25].tolist() != rows[25:50].tolist()


def test_shuffles_are_those_that_they_always_were() -> None:
    orders = [torch.randperm(25, generator=stream(3, "epoch", epoch)) for epoch in range(3)]
    assert torch.equal(torch.cat(series(Batches(25, 6, 3), 12)), torch.cat(orders)[:72])


@pytest.mark.parametrize("batch", [4, 8, 40])
def test_classes_are_exactly_balanced_where_the_batch_is_a_multiple(batch: int) -> None:
    for rows in series(Batches(25, batch, 0, LABELS, balanced=True), 30):
        assert LABELS[rows].bincount().tolist() == [batch // 4] * 4


@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7, 13])
def test_other_batches_differ_by_one_and_classes_take_turns(batch: int) -> None:
    total = torch.zeros(4, dtype=torch.int64)
    for number, rows in enumerate(series(Batches(25, batch, 0, LABELS, balanced=True), 40), start=1):
        counts = LABELS[rows].bincount(minlength=4)
        assert int(counts.max() - counts.min()) <= 1
        total += counts
        assert int(total.sum()) == number * batch
        assert int(total.max() - total.min()) <= 1


def test_every_image_of_a_class_comes_once_per_epoch_of_the_class() -> None:
    rows = torch.cat(series(Batches(25, 6, 0, LABELS, balanced=True), 60))
    for label, count in enumerate(LABELS.bincount().tolist()):
        # Within a batch the order is shuffled, so epochs are counted, not cut.
        uses = rows[LABELS[rows] == label].bincount(minlength=25)[label == LABELS]
        assert len(uses) == count
        assert int(uses.max() - uses.min()) <= 1


@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_depends_on_the_images_seen_alone(balanced: bool) -> None:
    labels = LABELS if balanced else None
    one = Batches(25, 6, 1, labels, balanced)
    expected = series(one, 40)
    for number in (39, 3, 20, 20, 0):
        assert torch.equal(one(number * 6), expected[number])
        assert torch.equal(Batches(25, 6, 1, labels, balanced)(number * 6), expected[number])
    other = series(Batches(25, 6, 2, labels, balanced), 40)
    assert not all(torch.equal(a, b) for a, b in zip(expected, other, strict=True))


def test_memory_does_not_grow_with_the_epochs() -> None:
    batches = Batches(25, 6, 0, LABELS, balanced=True)
    series(batches, 200)
    assert len(batches._orders) <= 2 * 4


def test_balanced_labels_are_balanced_to_within_one() -> None:
    assert balanced_labels(12, 4, stream(0, "a")).bincount().tolist() == [3, 3, 3, 3]
    rest = [balanced_labels(6, 4, stream(seed, "a")).bincount(minlength=4) for seed in range(40)]
    assert all(int(counts.max() - counts.min()) == 1 for counts in rest)
    # Which classes come twice is drawn by lot.
    assert bool((torch.stack(rest).max(0).values == 2).all())
    assert len({tuple(balanced_labels(6, 4, stream(seed, "a")).tolist()) for seed in range(9)}) > 5


def test_what_cannot_be_balanced_is_refused() -> None:
    with pytest.raises(UsageError, match="class-balanced batches need labels"):
        Batches(25, 5, 0, balanced=True)
    with pytest.raises(UsageError, match="got 3 labels for 25 images"):
        Batches(25, 5, 0, torch.zeros(3, dtype=torch.int64), balanced=True)
    with pytest.raises(UsageError, match="no image to train on"):
        Batches(0, 5, 0)
