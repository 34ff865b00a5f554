"""The result of a comparison: selecting, labelled arrays, rows, best matches. Numbers made by hand."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from featlens import Comparison
from featlens.comparison import frame
from featlens.comparison.panel import QUANTITIES
from featlens.errors import UsageError
from tests.comparison_helpers import (
    SAMPLES,
    crossed,
    distances,
    make_comparison,
    make_panel,
    strict,
    three_models,
)

COLUMNS = ["measure", "a", "b", "sigma", "sigma_b", "site_a", "site_b", *QUANTITIES, "n", "warnings"]

# --- what there is ------------------------------------------------------------------------------------------


def test_measures_pairs_and_names_are_in_the_order_of_the_request():
    result = three_models()
    assert result.measures == ("cka", "predictivity")
    assert result.pairs == (("t", "s"), ("t", "o"), ("s", "o"))
    assert result.names == ("t", "s", "o")
    given = make_comparison(make_panel(a="b", b="a"), models={"a": {}, "unused": {}, "b": {}})
    assert given.names == ("a", "b")


def test_what_it_prints():
    assert repr(make_comparison()) == "Comparison(cka: teacher x student, 2 sigmas, 3 x 3 sites, n 60)"
    assert repr(three_models()) == "Comparison(cka, predictivity: 3 pairs of t, s, o, 2 sigmas, n 60)"
    assert "6 sigma pairs" in repr(crossed())
    one = make_comparison(make_panel(levels=1), levels=[(0.5, 0.5)])
    assert "1 sigma, " in repr(one)


def test_nothing_can_be_changed():
    result = make_comparison()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.n = 3
    with pytest.raises(ValueError, match="read-only"):
        result.panels[0].arrays["value"][0, 0, 0] = 7
    with pytest.raises(ValueError, match="read-only"):
        result.data["value"].values[...] = 7
    with pytest.raises(ValueError, match="read-only"):
        result.grid()["value"].values[...] = 7
    before = result.data.copy(deep=True)
    result.to_xarray()["value"][:] = 7
    result.data["more"] = 3
    result.same_site()["enc.conv"][:] = 7
    assert result.data.identical(before)


def test_panels_that_do_not_fit_are_refused():
    for panels in ((), (make_panel(), make_panel())):
        with pytest.raises(ValueError, match="each measure and pair once"):
            Comparison(panels, ((0.1, 0.1), (2.5, 2.5)), 60, (), {})
    with pytest.raises(ValueError, match=r"has shape \(3, 3, 3\), expected \(2, 3, 3\)"):
        make_comparison(make_panel(levels=3))


# --- selecting ----------------------------------------------------------------------------------------------


def test_selecting_keeps_what_was_asked_for():
    result = three_models()
    part = result.select("cka", "t")
    assert (part.measures, part.pairs) == (("cka",), (("t", "s"), ("t", "o")))
    assert part.panels == result.panels[:2]
    assert set(part.provenance["models"]) == {"t", "s", "o"}
    assert set(result.select(a="t", b="s").provenance["models"]) == {"t", "s"}
    assert result.select(b="o").pairs == (("t", "o"), ("s", "o"))
    assert result.panel("cka", "s", "o") is result.panels[2]
    assert result.select().equals(result)


def test_options_of_a_measure_may_be_written_in_another_way():
    result = make_comparison(make_panel("cka(estimator='biased')"), make_panel("cka"))
    assert result.select("cka(estimator=biased)").measures == ("cka(estimator='biased')",)
    assert result.select("cka(estimator=debiased)").measures == ("cka",)


def test_a_symmetric_measure_may_be_asked_for_in_the_other_order():
    result = three_models()
    there, back = result.grid("cka", "t", "s"), result.grid("cka", "s", "t")
    for name in QUANTITIES:
        turned = there[name].values.swapaxes(1, 2)
        np.testing.assert_array_equal(back[name].values, turned)
    assert back.sizes == {"sigma": 2, "site_a": 3, "site_b": 2}
    part = result.select("cka", "s", "t")
    assert part.pairs == (("s", "t"),)
    assert part.panels[0].remarks_of(1, 2, 0) == result.panels[0].remarks_of(1, 0, 2)
    with pytest.raises(UsageError, match=r"predictivity is not symmetric and 's' as A and 't' as B"):
        result.select("predictivity", "s", "t")
    with pytest.raises(UsageError, match="predictivity is not symmetric"):
        result.select(a="s", b="t")


def test_a_pair_turned_round_has_its_noise_levels_turned_round():
    result = crossed()
    back = result.select(a="student", b="teacher")
    assert back.levels == tuple((b, a) for a, b in result.levels)
    assert back.select(a="teacher", b="student").equals(result)
    assert back.grid()["sigma"].values.tolist() == [b for _, b in result.levels]


def test_the_order_of_a_measure_that_is_not_known_here_matters():
    result = make_comparison(make_panel("mine"))
    with pytest.raises(UsageError, match="mine is not symmetric"):
        result.select(a="student", b="teacher")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"measure": "cak"}, "measure 'cak' was not computed: did you mean 'cka'"),
        ({"measure": "rsa"}, "measure 'rsa' was not computed: choose from cka, predictivity"),
        ({"a": "x"}, "no model 'x' was compared: choose from t, s, o"),
        (
            {"a": "o", "b": "o"},
            r"expected a pair that was compared, got 'o' as A and 'o' as B; there are cka: t",
        ),
    ],
)
def test_what_is_not_there_is_named(wanted, message):
    with pytest.raises(UsageError, match=message):
        three_models().select(**wanted)


@pytest.mark.parametrize("method", ["panel", "grid", "same_site", "best_matches", "figure"])
def test_where_there_is_a_choice_it_has_to_be_made(method):
    options = {"measure": "cka", "a": "t"}
    with pytest.raises(
        UsageError, match=r"expected one measure and one pair .*, 2 match; choose .*cka: t x s"
    ):
        getattr(three_models(), method)(**options)


# --- as labelled arrays and rows ----------------------------------------------------------------------------


def test_the_data_set_has_every_panel_at_its_place():
    result = three_models()
    data = result.data
    assert data["value"].dims == ("measure", "pair", "sigma", "site_a", "site_b")
    assert list(zip(data["model_a"].values.tolist(), data["model_b"].values.tolist(), strict=True)) == list(
        result.pairs
    )
    assert data["sigma_b"].values.tolist() == [0.1, 2.5]
    filled = 0
    for panel in result.panels:
        pair = result.pairs.index((panel.a, panel.b))
        part = data.sel(measure=panel.measure).isel(pair=pair)
        for name in QUANTITIES:
            inner = part[name].sel(site_a=list(panel.sites_a), site_b=list(panel.sites_b))
            np.testing.assert_array_equal(inner.values, panel.arrays[name])
        filled += panel.flags.size
    assert int(data["value"].notnull().sum()) == filled < data["value"].size


def test_the_data_set_is_made_once():
    result = make_comparison()
    assert np.shares_memory(result.data["value"].values, result.data["value"].values)
    assert not np.shares_memory(result.to_xarray()["value"].values, result.data["value"].values)


def test_a_grid_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(frame, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match=r"one grid of all 3 x 3 sites of 1 pairs would take .*; use \.grid"):
        _ = make_comparison().data
    assert make_comparison().grid().sizes["site_a"] == 3


def test_one_grid_has_the_dimensions_and_words_of_one_panel():
    grid = crossed().grid()
    assert grid["value"].dims == ("sigma", "site_a", "site_b")
    assert grid["sigma"].values.tolist() == [0.1, 0.1, 0.5, 0.5, 2.5, 2.5]
    assert grid["sigma_b"].values.tolist() == [0.1, 0.5] * 3
    assert (grid.attrs["measure"], grid.attrs["a"], grid.attrs["n"]) == ("cka", "teacher", 60)


def test_cells_and_the_frame_say_the_same():
    result = three_models()
    cells, table = result.cells(), result.to_frame()
    assert list(table.columns) == list(cells[0]) == COLUMNS
    assert len(cells) == len(table) == sum(panel.flags.size for panel in result.panels)
    for cell, row in zip(cells, table.to_dict("records"), strict=True):
        assert cell["warnings"] == [word for word in row.pop("warnings").split("; ") if word]
        assert {key: cell[key] for key in row} == row
    cell = cells[7]
    panel = result.panels[0]
    assert (cell["sigma"], cell["site_a"], cell["site_b"]) == (2.5, "x", "z")
    assert cell["value"] == panel.arrays["value"][1, 0, 1]
    assert cell["warnings"] == panel.remarks_of(1, 0, 1)


def test_json_is_strict_whatever_is_not_known():
    panel = make_panel(tested=False, intervals=False)
    arrays = {name: array.copy() for name, array in panel.arrays.items()}
    arrays["value"][0, 0, 0], arrays["value"][0, 0, 1] = np.nan, np.inf
    result = make_comparison(
        dataclasses.replace(panel, arrays=arrays), odd=float("nan"), levels=((0.1, 0.1),) * 2
    )
    found = strict(result.to_json())
    assert set(found) == {"cells", "provenance", "warnings", "levels"}
    first, second = found["cells"][:2]
    assert first["value"] is None and second["value"] is None and first["ci_low"] is None
    assert found["cells"][2]["value"] == arrays["value"][0, 0, 2]
    assert found["provenance"]["odd"] is None and found["provenance"]["samples"] == SAMPLES
    assert found["levels"] == [[0.1, 0.1], [0.1, 0.1]] and found["warnings"] == ["only 60 samples"]


LIGHT = """
import sys
from tests.comparison_helpers import make_comparison, three_models
result = three_models()
result.to_json(), result.select("cka", "s", "t").best_matches(), repr(result), result._repr_html_()
result.save(sys.argv[1])
assert type(result).load(sys.argv[1]).equals(result)
print(sorted({"xarray", "pandas", "plotly", "torch", "scipy"} & set(sys.modules)))
"""


def test_neither_rows_nor_files_need_xarray_or_torch(python, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [str(Path(__file__).parent.parent), *sys.path])
    done = python(LIGHT, tmp_path / "c.nc")
    assert (done.stderr, done.stdout) == ("", "[]\n")


# --- what matches what --------------------------------------------------------------------------------------


def test_sites_of_the_same_name():
    result = three_models()
    found = result.same_site("cka", "t", "s")
    assert list(found) == ["x", "y"]
    value = result.panels[0].arrays["value"]
    np.testing.assert_array_equal(found["x"], value[:, 0, 2])
    np.testing.assert_array_equal(found["y"], value[:, 1, 0])
    assert make_comparison(make_panel(sites_b=("p", "q"))).same_site() == {}


@pytest.mark.parametrize("make", [make_comparison, distances])
def test_best_matches(make):
    result = make()
    panel = result.panels[0]
    value = panel.arrays["value"]
    best = value.argmax(axis=2) if panel.direction == "similarity" else value.argmin(axis=2)
    matches = result.best_matches()
    assert len(matches) == 6
    for match, (level, i) in zip(matches, np.ndindex(2, 3), strict=True):
        j = best[level, i]
        assert match["sigma"] == match["sigma_b"] == result.levels[level][0]
        assert (match["site_a"], match["site_b"]) == (panel.sites_a[i], panel.sites_b[j])
        assert all(match[name] == panel.arrays[name][level, i, j] for name in QUANTITIES)
        assert match["warnings"] == panel.remarks_of(level, i, j)


def test_a_site_without_any_value_has_no_match():
    panel = make_panel()
    arrays = {name: array.copy() for name, array in panel.arrays.items()}
    arrays["value"][0, 1, :] = np.nan
    match = make_comparison(dataclasses.replace(panel, arrays=arrays)).best_matches()[1]
    assert (match["site_a"], match["site_b"], match["value"], match["p"]) == ("enc.norm", None, None, None)
    assert match["warnings"] == []
