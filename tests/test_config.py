"""Configurations from nested mappings: what is wrong is named, what is right comes back unchanged."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from featlens.errors import UsageError
from featlens_trainers.config import config_difference, from_mapping, to_mapping


@dataclass(frozen=True)
class Inner:
    width: int = 4
    rate: float = 0.5
    level: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)
    levels: tuple[float, ...] = (0.5,)
    inner: Inner = field(default_factory=Inner)


def test_round_trip_through_a_plain_mapping() -> None:
    config = Outer("b", True, (3,), (1.0, 2.0), Inner(8, 0.25, 2.5))
    mapping = to_mapping(config)
    assert mapping == {
        "name": "b",
        "flag": True,
        "sizes": [3],
        "levels": [1.0, 2.0],
        "inner": {"width": 8, "rate": 0.25, "level": 2.5},
    }
    assert from_mapping(Outer, mapping) == config


def test_none_is_left_out_and_comes_back_as_the_default() -> None:
    assert "level" not in to_mapping(Inner())
    assert from_mapping(Inner, to_mapping(Inner())) == Inner()
    assert from_mapping(Inner, {"level": None}) == Inner()


def test_missing_keys_take_the_defaults_or_those_of_the_base() -> None:
    assert from_mapping(Outer, {}) == Outer()
    base = Outer(sizes=(9,), inner=Inner(width=16, rate=0.75))
    changed = from_mapping(Outer, {"inner": {"rate": 1.0}}, base)
    assert changed == Outer(sizes=(9,), inner=Inner(width=16, rate=1.0))
    assert base.inner.rate == 0.75


def test_whole_numbers_do_for_fractions_but_not_the_other_way() -> None:
    assert from_mapping(Inner, {"rate": 1, "level": 2}) == Inner(rate=1.0, level=2.0)
    assert isinstance(from_mapping(Inner, {"rate": 1}).rate, float)
    assert from_mapping(Outer, {"levels": [1, 2]}).levels == (1.0, 2.0)
    with pytest.raises(UsageError, match=r"width must be of type int, got 4\.0"):
        from_mapping(Inner, {"width": 4.0})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"naem": "x"}, "unknown key 'naem': did you mean 'name'?"),
        ({"inner": {"widht": 1}}, "unknown key 'inner.widht': did you mean 'width'?"),
        ({"zzz": 1}, "unknown key 'zzz': choose from name, flag"),
        ({"inner": 3}, "inner must be a table, got 3"),
        ({"inner": {"width": "wide"}}, "inner.width must be of type int, got 'wide'"),
        ({"inner": {"width": True}}, "inner.width must be of type int, got True"),
        ({"inner": {"rate": True}}, "inner.rate must be of type float, got True"),
        ({"inner": {"level": "high"}}, "inner.level must be of type float, got 'high'"),
        ({"flag": 1}, "flag must be of type bool, got 1"),
        ({"name": 5}, "name must be of type str, got 5"),
        ({"sizes": 3}, "sizes must be a list, got 3"),
        ({"sizes": "12"}, "sizes must be a list, got '12'"),
        ({"sizes": [1, "2"]}, "sizes[1] must be of type int, got '2'"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(mapping: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(Outer, mapping)
    assert str(caught.value).startswith(f"configuration: {message}")


def test_differences_are_listed_key_by_key() -> None:
    there, asked = to_mapping(Outer()), to_mapping(Outer(name="b", inner=Inner(level=1.0, rate=2.0)))
    assert config_difference(there, asked) == [
        "inner.level: None there, 1.0 asked for",
        "inner.rate: 0.5 there, 2.0 asked for",
        "name: 'a' there, 'b' asked for",
    ]
    assert config_difference(there, there) == []
