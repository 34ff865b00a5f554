"""Errors: exit codes, one line each, nearest matches."""

from __future__ import annotations

import pytest

from featlens.errors import FeatlensError, SiteError, StoreError, UsageError, choices_hint


def test_exit_codes_tell_failed_work_from_wrong_usage():
    assert FeatlensError.exit_code == StoreError.exit_code == 1
    assert UsageError.exit_code == SiteError.exit_code == 2


def test_a_site_error_is_a_key_error_that_prints_like_any_other():
    error = SiteError("no site 'a'")
    assert isinstance(error, KeyError)
    assert isinstance(error, UsageError)
    assert str(error) == "no site 'a'"


@pytest.mark.parametrize(
    ("name", "choices", "hint"),
    [
        ("reverse_lk", ["reverse_kl", "js"], "did you mean 'reverse_kl'?"),
        ("zzz", ["reverse_kl", "js"], "choose from reverse_kl, js"),
        ("enc", [], "there are none"),
        ("zzz", "abcdefghi", "choose from a, b, c, d, e, f, g, h, ... (9 in all)"),
        ("zzz", "abcdefgh", "choose from a, b, c, d, e, f, g, h"),
        ("site1", ["site0", "site2", "x"], "did you mean 'site2' or 'site0'?"),
    ],
)
def test_choices_are_the_nearest_or_the_first(name, choices, hint):
    assert choices_hint(name, choices) == hint
