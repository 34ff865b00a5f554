"""Figures of a comparison: every number at its place, and no name from a file is read as HTML."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from featlens.comparison.drawing import GREY, band, level_names, palette, safe, site_labels
from featlens.comparison.figures import FIGURES
from featlens.errors import UsageError
from tests.comparison_helpers import HOSTILE, crossed, distances, make_comparison, make_panel, three_models

KINDS = ("heatmap", "depth", "sigma", "best", "cross")


def altered(result, **arrays):
    """The same with other arrays in its first panel."""
    panel = result.panels[0]
    changed = {name: array.copy() for name, array in panel.arrays.items()}
    for name, change in arrays.items():
        changed[name] = change(changed[name])
    panel = dataclasses.replace(panel, arrays=changed)
    return dataclasses.replace(result, panels=(panel, *result.panels[1:]))


def texts(spec):
    if isinstance(spec, dict):
        return [text for key, value in spec.items() if key != "bdata" for text in texts(value)]
    if isinstance(spec, list):
        return [text for value in spec for text in texts(value)]
    return [spec] if isinstance(spec, str) else []


def drawn(result, kind, **options):
    """Specification of a figure as plotly.js gets it."""
    spec = json.loads(result.figure(kind, **options).to_json())
    spec["layout"].pop("template", None)
    return spec


# --- heat map -----------------------------------------------------------------------------------------------


def test_the_heat_map_has_every_value_and_a_slider():
    result = make_comparison()
    figure = result.figure()
    value = result.panels[0].arrays["value"]
    maps, greys = figure.data[::2], figure.data[1::2]
    for level in range(2):
        np.testing.assert_array_equal(np.asarray(maps[level].z), value[level])
        assert list(maps[level].y) == list(maps[level].x) == ["enc.conv", "enc.norm", "dec.conv"]
    assert [trace.visible for trace in figure.data] == [False, False, True, True]
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0.1", "2.5"]
    assert slider.active == 1
    assert slider.steps[0].args[0] == {"visible": [True, True, False, False]}
    for grey in greys:
        # Only the last site of B is not above its null.
        assert np.isnan(np.asarray(grey.z)[:, :2]).all() and (np.asarray(grey.z)[:, 2] == 1).all()
        assert grey.colorscale[0][1] == GREY and grey.hoverinfo == "skip"


def test_hover_tells_everything_that_is_known():
    result = make_comparison()
    panel, trace = result.panels[0], result.figure().data[0]
    numbers = np.asarray(trace.customdata)
    found = re.findall(r"customdata\[(\d+)\]", trace.hovertemplate)
    assert found == [str(k) for k in range(numbers.shape[-1])]
    order = ("value", "ci_low", "ci_high", "null", "null_high", "p", "p_family", "q", "ceiling")
    for k, name in enumerate(order):
        np.testing.assert_allclose(numbers[..., k], panel.arrays[name][0], rtol=1e-6)
    for words in (
        "95 % interval",
        "null level",
        "95 % of it below",
        "family-wise",
        "noise ceiling",
        "%{text}",
    ):
        assert words in trace.hovertemplate
    for i, j in np.ndindex(3, 3):
        assert trace.text[i][j] == "".join(f"<br>{remark}" for remark in panel.remarks_of(0, i, j))


def test_hover_leaves_out_what_is_not_known():
    panel = make_panel(tested=False, intervals=False, flags=np.zeros((2, 3, 3), np.int64))
    figure = make_comparison(panel, level=0.9).figure()
    assert len(figure.data) == 2
    for word in ("interval", "null", "ceiling", "%{text}"):
        assert word not in figure.data[0].hovertemplate
    assert "90 % interval" in make_comparison(level=0.9).figure().data[0].hovertemplate


def test_bright_is_alike():
    similar, distant = make_comparison().figure().data[0], distances().figure().data[0]
    assert (similar.zmin, similar.zmax, similar.reversescale) == (0, 1, None)
    assert distant.reversescale and distant.zmin == 0
    assert distant.zmax == distances().panels[0].arrays["value"].max()
    assert "95 % of it above" in distant.hovertemplate
    negative = altered(make_comparison(), value=lambda value: value - 0.6)
    assert negative.figure().data[0].zmin == negative.panels[0].arrays["value"].min()
    near = make_comparison()
    trace = near.difference(make_comparison(make_panel(b="random", seed=1))).figure().data[0]
    assert trace.zmin == -trace.zmax < 0


def test_one_level_has_no_slider():
    one = make_comparison(make_panel(sites_a=("x",), sites_b=("x",), levels=1), levels=[(0.0, 0.0)])
    for kind in ("heatmap", "best"):
        figure = one.figure(kind)
        assert not figure.layout.sliders
        assert figure.data[0].visible


# --- curves -------------------------------------------------------------------------------------------------


def lines(figure):
    return {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}


def test_depth_has_a_line_a_sigma_with_its_band():
    result = make_comparison()
    arrays = {name: np.einsum("kii->ki", array) for name, array in result.panels[0].arrays.items()}
    figure = result.figure("depth")
    found = lines(figure)
    assert list(found) == ["sigma 0.1", "sigma 2.5"]
    for level, trace in enumerate(found.values()):
        np.testing.assert_array_equal(trace.y, arrays["value"][level])
        assert list(trace.text) == ["enc.conv", "enc.norm", "dec.conv"]
        (around,) = [t for t in figure.data if t.fill and t.legendgroup == trace.name]
        np.testing.assert_array_equal(around.y[:3], arrays["ci_high"][level])
        np.testing.assert_array_equal(around.y[3:], arrays["ci_low"][level][::-1])
    (null,) = [trace for trace in figure.data if trace.name == "null 95 %"]
    np.testing.assert_array_equal(null.y, arrays["null_high"].max(axis=0))
    assert list(figure.layout.xaxis.ticktext) == ["enc.conv", "enc.norm", "dec.conv"]


def test_sigma_has_a_line_a_site_in_the_order_of_sigma():
    result = make_comparison(levels=((2.5, 2.5), (0.1, 0.1)))
    figure = result.figure("sigma")
    found = lines(figure)
    assert list(found) == ["enc.conv", "enc.norm", "dec.conv"]
    for k, trace in enumerate(found.values()):
        assert list(trace.x) == [0.1, 2.5]
        np.testing.assert_array_equal(trace.y, result.panels[0].arrays["value"][::-1, k, k])
    assert figure.layout.xaxis.type == "log" and list(figure.layout.xaxis.ticktext) == ["0.1", "2.5"]


def test_the_null_level_of_distances_is_the_smallest():
    result = distances()
    (null,) = [trace for trace in result.figure("sigma").data if trace.name == "null 95 %"]
    high = np.einsum("kii->ki", result.panels[0].arrays["null_high"])
    np.testing.assert_array_equal(null.y, high.min(axis=1))


def test_a_sigma_of_zero_is_not_on_a_logarithmic_axis():
    figure = make_comparison(levels=((0.0, 0.0), (2.5, 2.5))).figure("sigma")
    assert figure.layout.xaxis.type is None
    assert list(figure.layout.xaxis.ticktext) == ["0", "2.5"] and list(lines(figure)["enc.conv"].x) == [0, 1]


@pytest.mark.parametrize("kind", ["depth", "sigma"])
def test_a_single_point_has_an_error_bar(kind):
    one = make_comparison(make_panel(sites_a=("x",), sites_b=("x",), levels=1), levels=[(0.5, 0.5)])
    (trace,) = lines(one.figure(kind)).values()
    arrays = one.panels[0].arrays
    np.testing.assert_allclose(trace.y + trace.error_y.array, arrays["ci_high"].ravel())
    np.testing.assert_allclose(trace.y - trace.error_y.arrayminus, arrays["ci_low"].ravel())


@pytest.mark.parametrize("kind", ["depth", "sigma"])
def test_without_common_names_the_curves_say_so(kind):
    figure = make_comparison(make_panel(sites_b=("p", "q"))).figure(kind)
    assert not figure.data and "No site has the same name" in figure.layout.annotations[0].text


def test_levels_with_other_sigmas_are_left_out_of_the_curves():
    result = crossed()
    assert list(lines(result.figure("depth"))) == ["sigma 0.1", "sigma 0.5"]
    assert list(lines(result.figure("sigma"))["enc.conv"].x) == [0.1, 0.5]
    apart = make_comparison(levels=((0.1, 0.5), (0.5, 2.5)))
    assert list(lines(apart.figure("depth"))) == ["sigma 0.1 x 0.5", "sigma 0.5 x 2.5"]


def test_many_lines_have_a_colour_bar_and_no_bands():
    sites = [f"net.block{k}.conv" for k in range(60)]
    result = make_comparison(make_panel(sites_a=sites, sites_b=sites))
    figure = result.figure("sigma")
    assert len(lines(figure)) == 60 and not any(trace.fill for trace in figure.data)
    assert not figure.layout.showlegend
    (bar,) = [trace.marker.colorbar for trace in figure.data if trace.marker.colorscale]
    assert 5 < len(bar.ticktext) <= 12 and bar.ticktext[0] == "net.block0.conv"
    assert len(result.figure("heatmap").layout.xaxis.ticktext) <= 50
    assert len(result.figure("heatmap").data[0].x) == 60


def test_bands_have_gaps_where_nothing_is_known():
    low = np.array([0.1, np.nan, 0.3, 0.4])
    around = band([1, 2, 3, 4], low, low + 0.1, "red", 0.2)
    assert list(around.x) == [1, 1, None, 3, 4, 4, 3]
    np.testing.assert_allclose([y for y in around.y if y is not None], [0.2, 0.1, 0.4, 0.5, 0.4, 0.3])


# --- best matches and crossed noise levels ------------------------------------------------------------------


@pytest.mark.parametrize("make", [make_comparison, distances])
def test_best_has_a_mark_for_each_site_of_a(make):
    result = make()
    value = result.panels[0].arrays["value"]
    best = value.argmax(axis=2) if make is make_comparison else value.argmin(axis=2)
    figure = result.figure("best")
    for level in range(2):
        above, chance = figure.data[2 * level : 2 * level + 2]
        marks = {int(x): int(y) for trace in (above, chance) for x, y in zip(trace.x, trace.y, strict=True)}
        assert marks == dict(enumerate(best[level].tolist()))
        # The last site of B is not above its null.
        assert all(y < 2 for y in above.y) and all(y == 2 for y in chance.y)
        np.testing.assert_array_equal(above.marker.color, value[level, above.x, above.y])
        assert chance.marker.color == GREY
    assert list(figure.data[-1].x) == list(figure.data[-1].y) == [0, 1, 2]
    assert figure.layout.sliders[0].steps[0].args[0] == {"visible": [True, True, False, False, True]}


def test_cross_is_the_mean_over_sites_or_one_of_them():
    result = crossed()
    value = result.panels[0].arrays["value"]
    mean = result.figure("cross")
    expected = np.einsum("kii->k", value).reshape(3, 2) / 3
    np.testing.assert_allclose(np.asarray(mean.data[0].z), expected)
    assert list(mean.data[0].y) == ["0.1", "0.5", "2.5"] and list(mean.data[0].x) == ["0.1", "0.5"]
    assert list(mean.data[1].x) == [["0.1", "0.5"][k] for k in expected.argmax(axis=1)]
    one = result.figure("cross", site="enc.norm").data[0]
    np.testing.assert_array_equal(np.asarray(one.z), value[:, 1, 1].reshape(3, 2))
    two = result.figure("cross", site=("enc.norm", "dec.conv")).data[0]
    np.testing.assert_array_equal(np.asarray(two.z), value[:, 1, 2].reshape(3, 2))
    back = result.figure("cross", a="student", b="teacher").data[0]
    np.testing.assert_allclose(np.asarray(back.z), expected.T)


def test_cross_refuses_what_it_cannot_show():
    with pytest.raises(UsageError, match="the same on both sides; compare with cross_sigmas=True"):
        make_comparison().figure("cross")
    with pytest.raises(UsageError, match=r"no site 'enc\.cnov' of 'teacher' was compared: did you mean"):
        crossed().figure("cross", site="enc.cnov")
    with pytest.raises(UsageError, match=r"expected site=NAME or \(site of A, site of B\)"):
        crossed().figure("cross", site=("a", "b", "c"))
    with pytest.raises(UsageError, match="mean over sites of the same name, here are none"):
        crossed(sites_b=("p", "q")).figure("cross")


# --- all of them --------------------------------------------------------------------------------------------


def test_unknown_kinds_name_the_nearest():
    assert tuple(FIGURES) == KINDS
    with pytest.raises(UsageError, match="unknown figure 'heatmp': did you mean 'heatmap'"):
        make_comparison().figure("heatmp")


@pytest.mark.parametrize("kind", KINDS)
def test_undefined_values_are_drawn_as_gaps(kind):
    result = altered(
        crossed(), **{name: lambda array: array * np.nan for name in ("value", "p_family", "ci_low")}
    )
    spec = drawn(result, kind)
    assert spec["layout"]["height"] >= 200
    partly = altered(crossed(), value=lambda value: np.where(value > 0.5, np.nan, value))
    assert drawn(partly, kind)["data"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_from_files_are_shown_as_they_are(kind):
    names = (HOSTILE, "<b>b</b>", "&lt;$x$ %{z}\n")
    result = crossed(
        a=HOSTILE, b="<i>b</i>", sites_a=names, sites_b=names, title="<u>t</u>", remarks=("<s>r</s>", "%{x}")
    )
    spec = drawn(result, kind)
    for text in texts(spec):
        assert re.sub("<br>|<extra></extra>", "", text).count("<") == 0, text
        assert "$" not in text and "\n" not in text
        assert set(re.findall(r"%\{(\w+)", text)) <= {"x", "y", "z", "text", "customdata"}
    assert "&lt;script&gt;" in json.dumps(spec)


def test_text_is_safe():
    assert safe("<b>&lt;$%{x}\0") == "&lt;b&gt;&amp;lt;&#36;&#37;{x}\N{REPLACEMENT CHARACTER}"
    assert safe("enc.32x32_block0 ünï") == "enc.32x32_block0 ünï"


def test_short_labels_stay_different():
    long = [f"network.encoder.level{k}.block{k}.convolution.weighted" for k in range(30)]
    labels = site_labels(long)
    assert len(set(labels)) == 30 and max(map(len, labels)) < 36
    assert site_labels(["a", "b"]) == ["a", "b"] and site_labels([]) == []
    same_ends = [f"{'x' * 40}{k}{'y' * 40}" for k in range(3)]
    assert len(set(site_labels(same_ends))) == 3


def test_levels_have_different_names():
    levels = [(0.1, 0.1), (float(np.nextafter(0.1, 1)), float(np.nextafter(0.1, 1))), (0.1, 2.5)]
    assert len(set(level_names(levels))) == 3
    assert level_names([(0.5, 0.5), (0.1, 2.5)]) == ["0.5", "0.1 x 2.5"]
    assert level_names([(0.5, 0.5)] * 2) == ["0.5 (1)", "0.5 (2)"]
    assert len(set(palette(9))) == 9 and len(palette(1)) == 1


# --- in a notebook ------------------------------------------------------------------------------------------


class Snippet(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        assert {name for name, _ in attrs} <= {"class", "style"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_a_notebook_shows_best_matches_without_scripts_or_network():
    found = Snippet(make_comparison()._repr_html_())
    assert not set(found.tags) & {"script", "link", "img", "iframe"}
    for match in make_comparison().best_matches():
        assert f"{match['value']:.3f}" in found.words
        assert f"{match['ci_low']:.3f} to {match['ci_high']:.3f}" in found.words
    assert found.tags.count("details") == 2 and "Warning: only 60 samples" in found.words
    assert found.words.count("0.01 *") + found.words.count("0.4") == 6
    several = Snippet(three_models()._repr_html_())
    assert any("the first of 6 panels" in word for word in several.words)


def test_a_notebook_shows_names_from_files_as_they_are():
    names = (HOSTILE, "<b>b</b>")
    result = crossed(a=HOSTILE, b="<i>", sites_a=names, sites_b=names)
    found = Snippet(dataclasses.replace(result, warnings=(HOSTILE,))._repr_html_())
    allowed = {"div", "p", "b", "code", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
    assert set(found.tags) <= allowed
    assert HOSTILE in found.words and f"Warning: {HOSTILE}" in found.words


def test_a_notebook_shows_little_of_something_large():
    sites = [f"s{k}" for k in range(100)]
    result = make_comparison(make_panel(sites_a=sites, sites_b=sites, tested=False, intervals=False))
    shown = result._repr_html_()
    assert len(shown) < 30_000 and "and 160 more" in shown and "<details>" not in shown
    undefined = altered(result, value=lambda value: value * np.nan)
    assert "undefined" in undefined._repr_html_()
