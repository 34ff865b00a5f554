"""Options of a location: values as TOML reads them, and refusals that name the parameter."""

from __future__ import annotations

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import UsageError
from featlens.options import known_options, read_options, require_options, split_options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("-3", -3),
        ("+1_000", 1000),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("-2.5", -2.5),
        ("6.02e23", 6.02e23),
        ("inf", math.inf),
        ("true", True),
        ("false", False),
        ("silu", "silu"),
        ("True", "True"),
        ("007", "007"),
        ("1.", "1."),
        ("2024-01-01", "2024-01-01"),
        ("a#b", "a#b"),
        ("runs/x.y", "runs/x.y"),
        ("it's", "it's"),
        ("a=b", "a=b"),
        ("__import__('os')", "__import__('os')"),
        ('"a, b"', "a, b"),
        ("'C:\\new, x'", "C:\\new, x"),
        (r'"say \"a, b\"\n\u00e9"', 'say "a, b"\né'),
        ('"32"', "32"),
        ('""', ""),
        ("[]", []),
        ("[1, 2,]", [1, 2]),
        ("[1.5, true, x, 'a, ]']", [1.5, True, "x", "a, ]"]),
        ("['a, ]', b]", ["a, ]", "b"]),
        ("[[1, 2], [3]]", [[1, 2], [3]]),
    ],
)
def test_values(text, value):
    found = read_options(f"first=1,name={text} , last=x")
    assert found == {"first": 1, "name": value, "last": "x"}
    assert type(found["name"]) is type(value)


values = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.booleans() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


def as_toml(value):
    import tomli_w

    return tomli_w.dumps({"v": value}).removeprefix("v = ").strip().replace("\n", " ")


@given(values)
def test_values_that_toml_writes_are_read_as_toml_reads_them(value):
    text = as_toml(value)
    expected = tomllib.loads(f"v = {text}")["v"]
    assert repr(read_options(f"v={text}, w=1")) == repr({"v": expected, "w": 1})


@pytest.mark.parametrize(
    ("location", "start", "options"),
    [
        ("runs/digits/teacher", "runs/digits/teacher", {}),
        ("python:m:f", "python:m:f", {}),
        ("python:m:f:width=32,depth=3", "python:m:f", {"width": 32, "depth": 3}),
        ("python:./models.py:f:name='a:b=1'", "python:./models.py:f", {"name": "a:b=1"}),
        ("models/x:dtype=float16", "models/x", {"dtype": "float16"}),
        ("C:/models", "C:/models", {}),
        ("a:1=2", "a:1=2", {}),
    ],
)
def test_options_begin_where_a_name_and_an_equals_sign_follow_a_colon(location, start, options):
    assert split_options(location) == (start, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width=1,width=2", "'width' is there twice; give each option once"),
        ("width=1,depth", "expected NAME=VALUE between commas, got 'depth'"),
        ("width=1,", "expected NAME=VALUE between commas, got ''"),
        ("width=", "expected NAME=VALUE between commas, got 'width='"),
        ("a b=1", "expected NAME=VALUE between commas, got 'a b=1'"),
        ('name="a', 'a quote is not closed; add the missing "'),
        (r'name="a\"', 'a quote is not closed; add the missing "'),
        ("name='a'b", "'a'b goes on after its '; put all of it in quotes"),
        ("sizes=[1, 2", "a bracket is not closed; add the missing ']'"),
        ("sizes=[1]2", "goes on after its ]"),
        ("sizes=[1,,2]", "has an empty place"),
        (r'name="\d"', r"\d means nothing; write \\ for a backslash, or single quotes around"),
        (r'name="\ud800"', r"\ud800 means nothing"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, message):
    with pytest.raises(UsageError) as caught:
        read_options(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def build(width, depth=2, *, act="silu"):
    """Parameters of all kinds that have a name."""


def anything(width=1, **others):
    """Takes every name."""


def nothing():
    """Takes none."""


def unknown(*_):
    """Something that inspect cannot look into, as functions in C."""


unknown.__signature__ = "none"


def positional(location, device, /, *, ema=True):
    """As an adapter."""


@pytest.mark.parametrize(
    ("function", "options", "skip"),
    [
        (build, {"width": 1}, 0),
        (build, {"width": 1, "depth": 3, "act": "relu"}, 0),
        (anything, {"width": 1, "other": 2}, 0),
        (nothing, {}, 0),
        (positional, {"ema": False}, 2),
        (lambda location, device, ema: None, {"ema": 1}, 2),
        (unknown, {"width": 1}, 0),
    ],
)
def test_options_that_fit_are_accepted(function, options, skip):
    require_options(function, options, "it", skip)


@pytest.mark.parametrize(
    ("function", "options", "skip", "message"),
    [
        (
            build,
            {"width": 1, "dept": 3},
            0,
            "it has no option 'dept': did you mean 'depth'? (it has width, depth, act)",
        ),
        (build, {"width": 1, "zzz": 3}, 0, "it has no option 'zzz': it has width, depth, act"),
        (build, {"depth": 3}, 0, "it needs 'width'; give options, as in ':width=VALUE'"),
        (nothing, {"width": 3}, 0, "it has no option 'width': it has none"),
        (positional, {"device": "cpu"}, 2, "it has no option 'device': it has ema"),
        (lambda location, device: None, {"device": "cpu"}, 2, "it has no option 'device': it has none"),
    ],
)
def test_options_that_do_not_fit_are_refused(function, options, skip, message):
    with pytest.raises(UsageError) as caught:
        require_options(function, options, "it", skip)
    assert str(caught.value) == message


def test_known_options_are_those_of_the_signature():
    options = {"ema": True, "device": "cpu", "other": 1}
    assert known_options(positional, options, skip=2) == {"ema": True}
    assert known_options(anything, options) == options
    assert known_options(nothing, options) == {}
