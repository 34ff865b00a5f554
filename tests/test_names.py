"""Glob patterns over dotted names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens.errors import SiteError, UsageError
from featlens.names import match_names

NAMES = ["enc.8x8_conv", "enc.8x8_block0", "enc.8x8_block0.conv", "dec.8x8_block0", "out[0]", "a+b"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("enc.*", ["enc.8x8_conv", "enc.8x8_block0"]),
        ("enc.**", ["enc.8x8_conv", "enc.8x8_block0", "enc.8x8_block0.conv"]),
        ("**", NAMES),
        ("**.conv", ["enc.8x8_block0.conv"]),
        ("*.8x8_block?", ["enc.8x8_block0", "dec.8x8_block0"]),
        ("*block0", None),
        ("e?c.8x8_conv", ["enc.8x8_conv"]),
        ("enc?8x8_conv", None),
        ("out[0]", ["out[0]"]),
        ("a+b", ["a+b"]),
        (["dec.**", "enc.8x8_conv", "enc.8*conv"], ["enc.8x8_conv", "dec.8x8_block0"]),
    ],
)
def test_patterns_match_levels_of_the_path(patterns, expected):
    if expected is None:
        with pytest.raises(SiteError, match="no site"):
            match_names(NAMES, patterns, "the network")
    else:
        assert match_names(NAMES, patterns, "the network") == expected


@given(st.lists(st.text(alphabet="ab.*?[](){}+^$|\\", min_size=1), min_size=1, unique=True))
def test_a_name_without_wildcards_matches_itself_alone(names):
    for name in names:
        if not set(name) & set("*?"):
            assert match_names(names, name, "here") == [name]
    assert match_names(names, "**", "here") == names


def test_a_pattern_that_matches_nothing_is_named_with_the_nearest():
    with pytest.raises(
        SiteError, match=r"^no site 'enc\.8x8_blok0' in a\.h5: did you mean 'enc\.8x8_block0'"
    ):
        match_names(NAMES, ["**", "enc.8x8_blok0"], "a.h5")


def test_many_choices_are_cut_short():
    with pytest.raises(SiteError, match=r"choose from x0, x1, .*, x7, \.\.\. \(40 in all\)$"):
        match_names([f"x{i}" for i in range(40)], "unlike", "a.h5")


def test_nothing_to_choose_from_is_said():
    with pytest.raises(SiteError, match="no site 'a' in the network: there are none"):
        match_names([], "a", "the network")
    with pytest.raises(SiteError, match="no site was asked for in the network: choose from enc"):
        match_names(["enc"], [], "the network")


STORED = [
    "lstm[0]",
    "lstm[1][0]",
    "mid@in",
    "mid@in[temb]#1",
    "enc.block[0]",
    "enc.block@in",
    "null@cond",
    "a#0",
]


@pytest.mark.parametrize("name", STORED)
def test_a_stored_name_given_verbatim_matches_itself_alone(name):
    assert match_names(STORED, name, "a.h5") == [name]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lstm[*]", ["lstm[0]", "lstm[1][0]"]),
        ("lstm[?]", ["lstm[0]"]),
        ("lstm*", ["lstm[0]", "lstm[1][0]"]),
        ("*@in", ["mid@in"]),
        ("**@in", ["mid@in", "enc.block@in"]),
        ("*@in*#1", ["mid@in[temb]#1"]),
        ("enc.*", ["enc.block[0]", "enc.block@in"]),
        ("*@cond", ["null@cond"]),
        (r"re:.*\[0\]", ["lstm[0]", "lstm[1][0]", "enc.block[0]"]),
        ("re:a|lstm", None),
    ],
)
def test_globs_and_expressions_over_stored_names(pattern, expected):
    if expected is None:
        with pytest.raises(SiteError, match="no site"):
            match_names(STORED, pattern, "a.h5")
    else:
        assert match_names(STORED, pattern, "a.h5") == expected


def test_a_name_that_looks_like_an_expression_matches_verbatim():
    assert match_names(["re:d", "d"], "re:d", "a.h5") == ["re:d"]
    assert match_names(["re:(", "d"], "re:(", "a.h5") == ["re:("]


def test_a_malformed_expression_is_named():
    with pytest.raises(UsageError, match=r"^'re:\(' is no regular expression: .*; mend it, or use a glob$"):
        match_names(STORED, "re:(", "a.h5")
