"""Cards: written, read, compared, and refused where they cannot be."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featlens.errors import FeatlensError, UsageError
from featlens_trainers.evaluation import Card, load_cards, measure, save_cards
from featlens_trainers.settings import MetricConfig


def card(values: dict[str, float] | None = None, **changes: Any) -> Card:
    names = ("frechet", "kid", "precision", "recall", "density", "coverage")
    made = Card(
        run="runs/a",
        generated=100,
        reference=50,
        seed=0,
        steps=1,
        network_evaluations=1,
        sigma_init=2.5,
        best_of=1,
        best_of_sigmas=(),
        label=None,
        weights="w",
        extractor={"name": "mine", "digest": "e1"},
        reference_images={"name": "digits", "digest": "r1"},
        settings={"k_precision": 3, "k_coverage": 5, "kid_block": None, "resamples": 3, "seed": 0},
        values={**dict.fromkeys(names, 0.5), **(values or {})},
        errors=dict.fromkeys(names, 0.3),
        draws=dict.fromkeys(names, (0.4, 0.5, 0.6)),
        warnings=("few images",),
        versions={"torch": "2"},
    )
    return replace(made, **changes)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "card.json"
    save_cards(path, [card()])
    assert load_cards(path) == [card()]
    held = json.loads(path.read_text())
    assert (held["format"], held["version"], held["frechet"], held["generated"]) == (
        "featlens.card",
        1,
        0.5,
        100,
    )
    save_cards(path, [card(), card(best_of=2)])
    assert load_cards(path) == [card(), card(best_of=2)]
    assert [entry.name for entry in path.parent.iterdir()] == ["card.json"]


def test_differences_of_paired_draws_are_smaller_than_their_parts() -> None:
    better = card({"frechet": 0.3}, draws={"frechet": (0.21, 0.29, 0.41)})
    rows = {row.metric: row for row in better.differences(card())}
    row = rows["frechet"]
    assert (row.value, row.other, row.paired) == (0.3, 0.5, True)
    assert row.difference == pytest.approx(-0.2)
    assert row.error == pytest.approx(np.std([-0.19, -0.21, -0.19], ddof=1))
    assert not rows["kid"].paired and rows["kid"].error == pytest.approx(math.hypot(0.3, 0.3))


@pytest.mark.parametrize("changes", [{"seed": 1}, {"resamples": 5}])
def test_draws_that_are_not_paired_add_their_errors(changes: dict[str, int]) -> None:
    other = card(settings={**card().settings, **changes})
    (row,) = [row for row in card().differences(other) if row.metric == "kid"]
    assert not row.paired and row.error == pytest.approx(math.hypot(0.3, 0.3))
    without = replace(other, errors={}, draws={})
    assert math.isnan(card().differences(without)[0].error)


def test_the_error_of_a_difference_leaves_out_what_both_share() -> None:
    def made(seed: int, reference: np.ndarray, shift: float) -> Card:
        numbers = np.random.default_rng(seed)
        found = measure(numbers.normal(size=(80, 3)) + shift, reference, MetricConfig(resamples=15))
        settings = {**card().settings, "resamples": 15}
        return card(values=dict(found.values), errors=found.errors, draws=found.draws, settings=settings)

    values, errors, apart = [], [], []
    for seed in range(14):
        reference = np.random.default_rng(seed + 10_000).normal(size=(40, 3))
        a, b = (made(seed + 100 * side, reference, 0.8) for side in (1, 2))
        row = next(row for row in a.differences(b) if row.metric == "frechet")
        values.append(row.difference)
        errors.append(row.error)
        apart.append(math.hypot(a.errors["frechet"], b.errors["frechet"]))
    truth, paired, sums = (math.sqrt(np.mean(np.square(found))) for found in (values, errors, apart))
    assert 0.5 < paired / truth < 2
    assert sums > 1.2 * paired


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"generated": 99}, r"n of generated images \(100 here, 99 there\)"),
        ({"reference": 1000}, r"n of reference images \(50 here, 1,000 there\)"),
        ({"extractor": {"name": "other", "digest": "e2"}}, r"extractor \(mine e1 here, other e2 there\)"),
        (
            {"reference_images": {"name": "digits", "digest": "r2"}},
            r"reference images \(digits r1 here, digits r2 there\)",
        ),
        ({"settings": {**card().settings, "k_coverage": 3}}, r"k_coverage \(5 here, 3 there\)"),
    ],
)
def test_cards_that_cannot_be_compared_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=f"cannot be compared: they differ in {said}; evaluate both alike"):
        card().differences(card(**changes))


def test_all_that_differs_is_named() -> None:
    with pytest.raises(UsageError, match=r"n of generated images .*; extractor .*; evaluate"):
        card().differences(card(generated=2, extractor={"name": "x", "digest": "y"}))


def broken(**changes: Any) -> str:
    held = {**card().to_dict(), **changes}
    return json.dumps({key: value for key, value in held.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no card"),
        ("{", "is no card"),
        ("[1]", "is no card"),
        ('{"format": "featlens.run"}', "is no card"),
        ("[" * 100_000, "is no card"),
        (broken(version=2), "has version 2, this featlens reads 1"),
        (broken(frechet=...), "is incomplete: no 'frechet'"),
        (broken(extractor=...), "is incomplete: no 'extractor'"),
        (broken(extractor={}), "is damaged"),
        (broken(extractor=3), "is damaged"),
        (broken(generated="many"), "is damaged .*whole number"),
        (broken(kid="small"), "is damaged"),
        (broken(draws=[1]), "is damaged"),
        (broken(odd={"not": "a number"}), "is damaged"),
        (json.dumps({"format": "featlens.cards", "version": 1, "cards": []}), "is damaged"),
    ],
)
def test_files_that_are_no_cards_are_one_clear_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(FeatlensError, match=said) as told:
        load_cards(path)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_card_that_is_not_there_and_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no card at"):
        load_cards(tmp_path / "nowhere.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "x.json", tmp_path):
        with pytest.raises(FeatlensError, match="is no card"):
            load_cards(path)
