"""Pages: self-contained, well formed, and safe whatever the data says."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from markupsafe import Markup
from PIL import Image

from featlens.report import Page, explorer, figure, image, note, table
from featlens.report.page import png

EVIL = "<script>alert(1)</script>"
TRICKY = "a \"quoted\" & 'named' </script><b>"


def page_of(*parts: Markup) -> str:
    page = Page("Title", "Lead.")
    page.section("Part", *parts)
    return page.html()


# --- the page -----------------------------------------------------------------------------------------------


def test_an_empty_page_is_whole(parse_page: Any) -> None:
    page = parse_page(Page("A title", "A lead.").html())
    assert [tag for tag, _ in page.elements][:2] == ["html", "head"]
    assert "A title" in page.text and "A lead." in page.text and "Written by featlens" in page.text
    assert ("meta", {"charset": "utf-8"}) in page.elements


def test_sections_come_in_order_with_links(parse_page: Any) -> None:
    made = Page("T", "L")
    for title in ("First part", "Zweiter: Größe", "Third"):
        made.section(title, note("words"))
    page = parse_page(made.html())
    anchors = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert anchors == [link[1:] for link in page.attributes("href")] and len(anchors) == 3


def test_two_sections_of_one_title_have_two_anchors(parse_page: Any) -> None:
    made = Page("T", "L")
    made.section("Warning", note("one"))
    made.section("Warning", note("two"))
    assert len([tag for tag, _ in parse_page(made.html()).elements if tag == "section"]) == 2


@pytest.mark.parametrize("text", [EVIL, TRICKY])
def test_every_text_is_escaped(parse_page: Any, text: str) -> None:
    made = Page(text, text)
    made.section(
        text,
        note(text),
        table([text], [[text]], text),
        image(np.zeros((2, 2)), text, text),
        figure(go.Figure(go.Scatter(x=[1], y=[2], name=text), {"title": {"text": text}}), text),
        explorer(
            {text: {"x": [text], "y": [text], "z": [[1.0]], "text": [[text]]}},
            [text], text, (text, text), text,
        ),
    )  # fmt: skip
    page = parse_page(made.html())
    plain = parse_page(page_of(figure(go.Figure(), "c"), explorer({}, [], "c", ("x", "y"), "u")))
    assert len(page.scripts) == len(plain.scripts)
    assert page.words.count(text) >= 9 and text in page.attributes("alt")
    assert text in page.attributes("aria-label")


@pytest.mark.parametrize("text", [EVIL, TRICKY])
def test_plotly_is_given_no_markup_from_data(parse_page: Any, text: str) -> None:
    chart = go.Figure(go.Scatter(x=[1], y=[2], name=text, text=[text]))
    panels = {"a": {"x": [text], "y": [text], "z": [[1.0]], "text": [[f"{text}<br>more"]]}}
    page = parse_page(page_of(figure(chart, "c"), explorer(panels, ["k"], "c", (text, text), text)))
    ((trace,),) = [spec["data"] for spec in page.figures("featlensPlot")]
    (heat,) = page.figures("featlensExplorer")
    shown = [trace["name"], trace["text"][0], heat["axes"][0], heat["unit"]]
    shown += [heat["panels"]["a"][axis][0] for axis in "xy"]
    assert all("<script" not in part and "</script" not in part for part in shown)
    assert heat["panels"]["a"]["text"][0][0].endswith("<br>more")


def test_a_menu_value_is_the_key_of_its_panel(parse_page: Any) -> None:
    names = ["a  b", " c ", EVIL, "x&amp;y", "ä"]
    heat = {"x": ["x"], "y": ["y"], "z": [[1.0]], "text": [["t"]]}
    panels = {f"{name}|{sigma:g}": heat for name in names for sigma in (0.5, 2.5)}
    page = parse_page(page_of(explorer(panels, ["student", "sigma"], "c", ("x", "y"), "CKA")))
    values = [attributes["value"] for tag, attributes in page.elements if tag == "option"]
    assert values == [*names, "0.5", "2.5"]
    assert list(page.figures("featlensExplorer")[0]["panels"]) == list(panels)


def test_scripts_and_styles_come_once_and_in_order(parse_page: Any) -> None:
    made = Page("T", "L")
    made.use("comparison.css", "comparison_figures.js", "comparison.js")
    made.use("comparison.css", "comparison_figures.js", "embedding.js")
    text = made.html()
    scripts = parse_page(text).scripts
    starts = ["function featlensLines(", "function featlensComparison(", "function featlensEmbedding("]
    at = [next(k for k, script in enumerate(scripts) if start in script) for start in starts]
    assert at == sorted(at) and len(scripts) == 5
    assert text.partition("</head>")[0].count(".columns { display: grid") == 1


# --- parts --------------------------------------------------------------------------------------------------


def test_not_a_number_becomes_null(parse_page: Any) -> None:
    z = np.array([[np.nan, 1.0], [np.inf, -0.5]], dtype=np.float32)
    heat = {"x": ["a", "b"], "y": [1, np.int64(2)], "z": z, "text": [["", ""], ["", ""]]}
    chart = go.Figure(go.Scatter(x=[1.0, float("nan")], y=[float("inf"), 2.0]))
    page = parse_page(page_of(explorer({"k": heat}, ["k"], "c", ("x", "y"), "u"), figure(chart, "c")))
    assert page.figures("featlensExplorer")[0]["panels"]["k"]["z"] == [[None, 1.0], [None, -0.5]]
    assert page.figures("featlensPlot")[0]["data"][0]["x"] == [1.0, None]


def test_numbers_of_a_table_are_aligned(parse_page: Any) -> None:
    rows = [["a", 1, 0.5], ["-", "0.123", "-1.5"], ["v2", "2 (1 to 3)", "+7"]]
    page = parse_page(page_of(table(["name", "one", "two"], rows, "A caption")))
    cells = [attributes.get("class") == "number" for tag, attributes in page.elements if tag == "td"]
    assert cells == [False, True, True, False, True, True, False, True, True]
    assert "A caption" in page.words and "0.123" in page.words


def test_every_figure_has_a_name_of_its_own(parse_page: Any) -> None:
    page = parse_page(page_of(*(figure(go.Figure(), f"caption {i}") for i in range(3))))
    plots = [attributes for _, attributes in page.elements if attributes.get("class") == "plot"]
    assert [plot["aria-label"] for plot in plots] == [f"caption {i}" for i in range(3)]
    assert all(plot["role"] == "img" for plot in plots)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_an_image_is_a_png_of_its_pixels(parse_page: Any, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).uniform(-20, 280, size=shape)
    page = parse_page(page_of(image(pixels, "caption", "detail", scale=4)))
    ((_, attributes),) = [(tag, found) for tag, found in page.elements if tag == "img"]
    assert (attributes["width"], attributes["height"], attributes["alt"]) == ("28", "20", "caption")
    data = base64.b64decode(attributes["src"].partition(",")[2], validate=True)
    assert data == png(pixels)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG" and picture.size == (7, 5)
        expected = np.clip(pixels, 0, 255).astype(np.uint8)
        assert np.array_equal(np.asarray(picture), expected)


def test_writing_replaces_the_page_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    assert Page("T", "L").write(path) == path
    assert path.read_text(encoding="utf-8").endswith("</html>")
    assert list(tmp_path.iterdir()) == [path]
