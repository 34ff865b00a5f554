"""Two comparisons of the same samples: joined, or subtracted. Numbers made by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from featlens.comparison import combine
from featlens.errors import UsageError
from tests.comparison_helpers import SAMPLES, make_comparison, make_panel, strict


def test_joining_keeps_every_panel():
    one = make_comparison(make_panel("cka"), permutations=99)
    other = make_comparison(
        make_panel("rsa"), make_panel("cka", b="random"), permutations=9, warnings=("new",)
    )
    both = one.join(other)
    assert both.panels == (*one.panels, *other.panels)
    assert both.warnings == ("only 60 samples", "new")
    assert list(both.provenance["models"]) == ["teacher", "student", "random"]
    assert both.provenance["joined"] == [{"permutations": 99}, {"permutations": 9}]
    assert both.provenance["seed"] == 0 and "permutations" not in both.provenance
    assert both.select("cka", b="student").panels == one.panels


def test_only_the_path_of_a_file_may_differ_when_joining():
    models = {"teacher": {"file": "/elsewhere/t.h5", "weights_digest": "w-teacher"}, "student": {}}
    models["student"] = {"file": "s.h5", "weights_digest": "another"}
    good = make_comparison(make_panel("rsa"), models=models | {"student": {"weights_digest": "w-student"}})
    assert make_comparison().join(good).provenance["models"]["teacher"]["file"] == "teacher.h5"
    with pytest.raises(UsageError, match="expected 'student' to be the same model in both"):
        make_comparison().join(make_comparison(make_panel("rsa"), models=models))


@pytest.mark.parametrize("what", ["join", "difference"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"samples": SAMPLES | {"digest": "d2"}}, r"same samples and noise, their digest differs \(d1; d2\)"),
        ({"samples": SAMPLES | {"ids": "i2"}}, r"their ids differs \(i1; i2\)"),
        ({"n": 61}, "the same samples, got 60 and 61 of them"),
        (
            {"levels": ((0.1, 0.1), (2.5, 0.1))},
            r"noise levels, got 0\.1, 2\.5 and 0\.1, 2\.5 x 0\.1; compare",
        ),
        ({"level": 0.9}, r"intervals of the same confidence, got 0\.95 and 0\.9; compare both"),
    ],
)
def test_other_samples_noise_and_levels_are_refused(what, other, message):
    with pytest.raises(UsageError, match=message) as error:
        getattr(make_comparison(), what)(make_comparison(make_panel("rsa"), **other))
    assert str(error.value).startswith(f"{what}: ") and "\n" not in str(error.value)


def test_the_name_of_a_sample_set_is_no_reason_to_refuse():
    one, other = (make_comparison(make_panel(m), samples=SAMPLES | {"split": m}) for m in ("cka", "rsa"))
    assert one.join(other).provenance["samples"]["split"] == "cka"


def test_where_samples_are_not_known_there_is_a_warning():
    one, other = (make_comparison(make_panel(m), samples={"n": 60}) for m in ("cka", "rsa"))
    assert one.join(other).warnings == ("only 60 samples", combine.UNKNOWN)
    assert one.difference(make_comparison(b_of(one), samples={"n": 60})).warnings[-1] == combine.UNKNOWN


def b_of(result):
    return dataclasses.replace(result.panels[0], b="random")


def test_a_panel_in_both_is_refused():
    with pytest.raises(UsageError, match="cka: teacher x student is in both; leave it out"):
        make_comparison().join(make_comparison())
    with pytest.raises(UsageError, match="join: expected a Comparison, got dict"):
        make_comparison().join({})


def test_a_difference_adds_half_widths():
    near, far = make_comparison(), make_comparison(make_panel(b="random", seed=3))
    result = near.difference(far)
    a, b, panel = near.panels[0].arrays, far.panels[0].arrays, result.panels[0]
    np.testing.assert_allclose(panel.arrays["value"], a["value"] - b["value"])
    half = [(c["ci_high"] - c["value"], c["value"] - c["ci_low"]) for c in (a, b)]
    np.testing.assert_allclose(panel.arrays["ci_high"] - panel.arrays["value"], half[0][0] + half[1][1])
    np.testing.assert_allclose(panel.arrays["value"] - panel.arrays["ci_low"], half[0][1] + half[1][0])
    for name in ("null", "null_high", "p", "p_family", "q", "ceiling"):
        assert np.isnan(panel.arrays[name]).all()
    assert (panel.measure, panel.a, panel.b) == ("difference of cka", "teacher", "student minus random")
    assert panel.bounds == (-np.inf, np.inf)
    assert panel.how["interval"] == combine.RULE and "random" in panel.how["plan"]
    assert result.provenance["subtrahend"]["models"]["random"]["file"] == "random.h5"
    strict(result.to_json())


def test_a_difference_covers_however_the_two_depend_on_each_other():
    rng = np.random.default_rng(0)
    for correlation in (-1.0, -0.5, 0.0, 0.9, 1.0):
        x = rng.normal(size=4000)
        y = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=4000)
        wide = 1.96 * (1.0 + 2.0)
        assert (np.abs(x - 2 * y) <= wide).mean() >= 0.94


def test_a_difference_keeps_the_remarks_of_both():
    one = make_panel(remarks=("r0", "r1"))
    other = make_panel(b="random", seed=3, remarks=("r1", "r2"))
    panel = make_comparison(one).difference(make_comparison(other)).panels[0]
    for index in np.ndindex(2, 3, 3):
        expected = {*one.remarks_of(*index), *other.remarks_of(*index)}
        assert set(panel.remarks_of(*index)) == expected


def test_differences_of_what_does_not_fit_are_refused():
    one = make_comparison()
    for other, message in (
        (make_comparison(make_panel("rsa")), "expected one measure, got cka and rsa"),
        (
            make_comparison(make_panel(), make_panel("rsa")),
            "one measure and pair on either side, got 1 and 2",
        ),
        (
            make_comparison(make_panel(sites_b=("x", "y", "z"))),
            "expected the same site names in the same order",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            one.difference(other)
    several = make_comparison(make_panel(), make_panel("rsa"))
    assert several.difference(make_comparison(b_of(one)), "cka").measures == ("difference of cka",)
    with pytest.raises(UsageError, match="2 match; choose measure="):
        several.difference(one)
