"""Configurations from nested mappings: what is wrong is named, what is right comes back unchanged."""

from __future__ import annotations

import json
import sys
import typing
from dataclasses import dataclass, field

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens_trainers.config import config_difference, from_mapping, one_of, to_mapping
from featlens_trainers.networks import ADMConfig, DiTConfig, NetworkConfig, UNetConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


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


# --- tables of several kinds, arrays of tables --------------------------------------------------------------


@dataclass(frozen=True)
class Circle:
    kind: str = field(default="circle", kw_only=True)
    size: int = field(default=3, metadata={"shared": True})
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    kind: str = field(default="square", kw_only=True)
    size: int = field(default=5, metadata={"shared": True})
    radius: float = 9.0
    side: float | None = 2.0


@dataclass(frozen=True)
class Rule:
    match: str
    amount: float | str | None = None


@dataclass(frozen=True)
class Named:
    name: str = "n"
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Drawing:
    shape: Circle | Square = field(default_factory=lambda: Circle(radius=0.5))
    hidden: Circle | Square | None = None
    shapes: tuple[Circle | Square, ...] = ()
    named: tuple[Named, ...] = (Named("a", (Rule("x"),)),)
    pair: tuple[int, float] = (1, 2.0)
    sizes: int | tuple[int, ...] = 1


circles = st.builds(Circle, size=st.integers(1, 9), radius=st.floats(0, 9))
squares = st.builds(Square, size=st.integers(1, 9), side=st.none() | st.floats(0, 9))
shapes = circles | squares
words = st.text("abc'\"\n\\ü", max_size=5)
rules = st.builds(Rule, match=words, amount=st.none() | st.floats(0, 1) | words)
named = st.builds(Named, name=words, rules=st.lists(rules, max_size=3).map(tuple))
drawings = st.builds(
    Drawing,
    shape=shapes,
    hidden=st.none() | shapes,
    shapes=st.lists(shapes, max_size=3).map(tuple),
    named=st.lists(named, max_size=3).map(tuple),
    pair=st.tuples(st.integers(0, 9), st.floats(0, 1)),
    sizes=st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=3).map(tuple),
)


@given(drawings)
def test_any_configuration_comes_back_from_its_mapping_and_from_json(drawing: Drawing) -> None:
    mapping = to_mapping(drawing)
    assert from_mapping(Drawing, mapping) == drawing
    assert from_mapping(Drawing, json.loads(json.dumps(mapping))) == drawing


networks = st.one_of(
    st.builds(
        UNetConfig,
        channels=st.integers(1, 9).map(lambda n: 4 * n),
        channel_mult=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
        dropout=st.floats(0, 0.9),
        labels=st.integers(0, 9),
    ),
    st.builds(ADMConfig, blocks=st.integers(1, 5), attention_resolutions=st.just((8,))),
    st.builds(DiTConfig, depth=st.integers(1, 9), patch=st.sampled_from([1, 2, 4]), labels=st.integers(0, 9)),
)


@given(networks)
def test_networks_of_every_kind_come_back_from_toml(config: NetworkConfig) -> None:
    text = tomli_w.dumps({"network": to_mapping(config)})
    assert one_of(NetworkConfig, tomllib.loads(text)["network"]) == config


def test_what_is_written_says_its_kind_first_and_does_without_it_are_the_first_kind() -> None:
    assert [next(iter(to_mapping(kind()))) for kind in (UNetConfig, ADMConfig, DiTConfig)] == ["kind"] * 3
    assert one_of(NetworkConfig, {"channels": 8}) == UNetConfig(channels=8)
    assert one_of(NetworkConfig, {"depth": 2}, DiTConfig(width=32)) == DiTConfig(width=32, depth=2)
    assert UNetConfig(16, 3) == UNetConfig(resolution=16, in_channels=3)


def test_a_table_changes_the_default_or_base_of_its_kind() -> None:
    assert from_mapping(Drawing, {"shape": {"size": 4}}).shape == Circle(4, radius=0.5)
    base = Drawing(shape=Square(7, side=1.0))
    assert from_mapping(Drawing, {"shape": {"radius": 2}}, base).shape == Square(7, 2.0, 1.0)
    assert from_mapping(Drawing, {"shape": {"kind": "square", "side": 4.0}}, base).shape == Square(
        7, side=4.0
    )


def test_another_kind_starts_anew_but_for_what_is_shared() -> None:
    base = Drawing(shape=Circle(8, radius=0.1))
    assert from_mapping(Drawing, {"shape": {"kind": "square"}}, base).shape == Square(8)
    assert from_mapping(Drawing, {"shape": {"kind": "square", "size": 2}}, base).shape == Square(2)
    config = UNetConfig(32, 3, 3, channels=64, channel_mult=(1, 2), labels=10, dropout=0.5)
    assert one_of(NetworkConfig, {"kind": "dit", "patch": 4}, config) == DiTConfig(
        32, 3, 3, patch=4, labels=10
    )
    # Judged together: 30 pixels alone would not divide into the default patches of 4.
    assert one_of(NetworkConfig, {"kind": "dit", "resolution": 30, "patch": 3}, config).patch == 3


def test_an_array_of_tables_replaces_the_one_that_was_there() -> None:
    made = from_mapping(Drawing, {"named": [{"name": "b", "rules": [{"match": "y", "amount": 1}]}]})
    assert made.named == (Named("b", (Rule("y", 1.0),)),)
    assert isinstance(made.named[0].rules[0].amount, float)
    assert from_mapping(Drawing, {"shapes": [{}, {"kind": "square"}]}).shapes == (Circle(), Square())


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"shape": {"kind": "sqare"}}, "unknown shape.kind 'sqare': did you mean 'square'?"),
        ({"shape": {"kind": 3}}, "unknown shape.kind 3: choose from circle, square"),
        ({"shape": {"kind": ["circle"]}}, "unknown shape.kind ['circle']: "),
        ({"shape": {"side": 1.0}}, "unknown key 'shape.side': did you mean 'size'?"),
        ({"shape": 3}, "shape must be a table, got 3"),
        ({"hidden": "circle"}, "hidden must be a table, got 'circle'"),
        ({"shapes": {"kind": "circle"}}, "shapes must be a list, got {'kind': 'circle'}"),
        ({"shapes": [{}, {"kind": "cube"}]}, "unknown shapes[1].kind 'cube': "),
        ({"shapes": [{}, {"raduis": 1}]}, "unknown key 'shapes[1].raduis': did you mean 'radius'?"),
        ({"named": [{"rules": [{"match": "a"}, {}]}]}, "named[0].rules[1] needs 'match'; add it"),
        (
            {"named": [{"rules": [{"match": "a", "amount": True}]}]},
            "named[0].rules[0].amount must be of type",
        ),
        ({"pair": [1, 2, 3]}, "pair must have 2 entries, got 3"),
        ({"sizes": "many"}, "sizes must be of type int or tuple"),
        ({"sizes": [1, "x"]}, "sizes[1] must be of type int, got 'x'"),
    ],
)
def test_what_is_wrong_in_nested_tables_is_named_with_its_place(mapping: dict, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping(Drawing, mapping)
    assert str(caught.value).startswith(f"configuration: {message}")
    assert "\n" not in str(caught.value)


def test_what_is_no_table_at_all_is_refused() -> None:
    for call in (lambda: from_mapping(Outer, [1]), lambda: one_of(NetworkConfig, "unet")):
        with pytest.raises(UsageError, match="configuration: it must be a table, got"):
            call()
    with pytest.raises(UsageError, match="configuration: it needs 'match'; add it"):
        from_mapping(Rule, {})


def test_every_kind_of_network_has_a_tag_of_its_own() -> None:
    tags = [kind().kind for kind in typing.get_args(NetworkConfig)]
    assert tags == ["unet", "adm", "dit"]
