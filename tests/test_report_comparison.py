"""The page of a comparison: what it says, in which order, from which numbers, and safely."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featlens.comparison.panel import QUANTITIES
from featlens.errors import UsageError
from featlens.report import comparison_report, linked
from featlens.report.matches import match_rows
from tests.comparison_helpers import crossed, distances, make_comparison, make_panel, three_models

EVIL = "<script>alert(1)</script>"
TRICKY = "</script><b>\"x\" & 'y'"


def write(tmp_path: Path, comparison: Any, **options: Any) -> Path:
    path = tmp_path / "page.html"
    comparison_report(comparison, path, **({"embedding": "none"} | options))
    return path


def spec_of(page: Any) -> Any:
    (spec,) = page.figures("featlensComparison")
    return spec


def menus(page: Any) -> dict[str, list[str]]:
    """Roles of the menus and sliders, with the values of what is chosen in the menus."""
    return {
        role: [a.get("data-for", "") for tag, a in page.elements if a.get("data-role") == role]
        for role in {a["data-role"] for _, a in page.elements if "data-role" in a}
    }


def evil() -> Any:
    panel = make_panel(
        EVIL, TRICKY, EVIL, (EVIL, TRICKY), (TRICKY, EVIL, "%{x}"),
        title=EVIL, remarks=(EVIL, TRICKY), how={"plan": EVIL, "interval": TRICKY, "null": EVIL},
    )  # fmt: skip
    models = {
        name: {"file": f"/{EVIL}/{name}", "model": name, "sigmas": [0.1, 2.5]} for name in (TRICKY, EVIL)
    }
    return make_comparison(panel, warnings=[EVIL, TRICKY], models=models, device=EVIL)


# --- order and words ----------------------------------------------------------------------------------------


def test_warnings_come_first_and_provenance_last(tmp_path: Path, parse_page: Any) -> None:
    page = parse_page(write(tmp_path, make_comparison()))
    anchors = [a["id"] for tag, a in page.elements if tag == "section"]
    assert anchors == [
        "warnings", "what-was-compared", "every-site-with-every-site", "best-matches", "provenance",
    ]  # fmt: skip
    lead = next(k for k, word in enumerate(page.words) if word.startswith("CKA between the sites"))
    assert (
        page.words[lead]
        == "CKA between the sites of teacher and student, at 2 noise levels, over 60 samples."
    )
    assert page.words.index("only 60 samples") < page.words.index("weights digest")


def test_remarks_of_cells_are_counted(tmp_path: Path, parse_page: Any) -> None:
    flags = np.zeros((2, 3, 3), dtype=np.int64)
    flags[0], flags[1, 0, 0] = 1, 3
    page = parse_page(write(tmp_path, make_comparison(make_panel(flags=flags), warnings=())))
    assert "10 cells: few samples" in page.words and "1 cell: constant features" in page.words
    none = make_comparison(make_panel(flags=0 * flags), warnings=())
    assert "None." in parse_page(write(tmp_path, none)).words
    assert spec_of(page)["panels"][0]["flags"] == flags.tolist()


def test_remarks_of_several_panels_say_where(tmp_path: Path, parse_page: Any) -> None:
    one = np.zeros((2, 3, 3), dtype=np.int64)
    two = one.copy()
    one[0, 0, 0] = two[0, 0, :2] = 1
    panels = [make_panel(flags=one), make_panel("rsa", flags=two)]
    text = parse_page(write(tmp_path, make_comparison(*panels))).text
    assert "3 cells: few samples (cka: teacher and student: 1; rsa: teacher and student: 2)" in text
    panels[1] = make_panel("rsa", flags=one)
    text = parse_page(write(tmp_path, make_comparison(*panels))).text
    assert "2 cells: few samples (1 for each measure and pair)" in text


def test_what_was_compared_and_how(tmp_path: Path, parse_page: Any) -> None:
    told = {
        "file": "/deep/down/t.h5",
        "weights_digest": "w1",
        "sigmas": [0.05, 2.5],
        "noise_seed": 0,
        "odd": 1.5,
    }
    models = {"teacher": told, "student": {"file": None, "weights_digest": "w2"}}
    page = parse_page(write(tmp_path, make_comparison(models=models)))
    for word in ("t.h5", "w1", "w2", "0.05, 2.5", "tiles", "jackknife", "99 permutations", "CKA (cka)"):
        assert word in page.words
    assert "n 60; seed 0; level 0.95; permutations 99; device cpu." in page.words
    recorded = next(word for word in page.words if word.startswith("{"))
    assert json.loads(recorded)["models"]["teacher"] == told


def test_methods_that_agree_take_one_line(tmp_path: Path, parse_page: Any) -> None:
    page = parse_page(write(tmp_path, three_models()))
    assert page.words.count("jackknife") == 2, "one line a measure"
    panels = [make_panel(b="s"), make_panel(b="o", how={"plan": "p", "interval": "none", "null": "n"})]
    page = parse_page(write(tmp_path, make_comparison(*panels)))
    assert {"CKA (cka): teacher and s", "CKA (cka): teacher and o"} <= set(page.words)


# --- numbers ------------------------------------------------------------------------------------------------


def test_the_figures_are_given_the_numbers_of_the_comparison(tmp_path: Path, parse_page: Any) -> None:
    result = three_models()
    result.panels[0].arrays["value"].setflags(write=True)
    result.panels[0].arrays["value"][0, 1, 2] = np.nan
    spec = spec_of(parse_page(write(tmp_path, result)))
    assert len(spec["panels"]) == 6 and spec["levels"] == [list(level) for level in result.levels]
    for told, panel in zip(spec["panels"], result.panels, strict=True):
        for name in QUANTITIES:
            given = np.array(told[name], dtype=float)
            np.testing.assert_allclose(given, panel.arrays[name], rtol=1e-4)
        assert (told["sites_a"], told["sites_b"]) == (list(panel.sites_a), list(panel.sites_b))
    assert spec["panels"][0]["same"] == [[0, 2], [1, 0]], "x and y, wherever they are in B"


def test_what_was_not_computed_is_not_there(tmp_path: Path, parse_page: Any) -> None:
    page = parse_page(write(tmp_path, make_comparison(make_panel(tested=False, intervals=False))))
    (told,) = spec_of(page)["panels"]
    assert all(told[name] is None for name in QUANTITIES if name != "value")
    assert "No null level was computed" in told["grey"] and "dashed" not in told["curve"]
    assert "band" not in told["curve"] and "noise ceiling" not in page.text


def test_colours_of_one_measure_agree_and_negative_values_do_not_stretch_them(
    tmp_path: Path, parse_page: Any
) -> None:
    panels = [make_panel("r2", b="s", seed=1), make_panel("r2", b="o", seed=2)]
    panels[0].arrays["value"].setflags(write=True)
    panels[0].arrays["value"][0, 0, 0] = -40
    spec = spec_of(parse_page(write(tmp_path, make_comparison(*panels))))
    assert [panel["range"] for panel in spec["panels"]] == [[0, 1], [0, 1]]
    (told,) = spec_of(parse_page(write(tmp_path, distances())))["panels"]
    assert told["range"] == [0, pytest.approx(max(distances().panels[0].arrays["value"].ravel()), rel=1e-4)]


def test_best_matches(tmp_path: Path, parse_page: Any) -> None:
    result = make_comparison()
    page, (panel,) = parse_page(write(tmp_path, result)), result.panels
    spec = spec_of(page)
    for level, rows in enumerate(spec["matches"][0]):
        assert rows == match_rows(panel, level)
        for i, (site, best, value, stars, interval, *_) in enumerate(rows):
            j = int(np.argmax(panel.arrays["value"][level, i]))
            low, high = (panel.arrays[name][level, i, j] for name in ("ci_low", "ci_high"))
            assert (site, best) == (panel.sites_a[i], panel.sites_b[j])
            assert value == f"{panel.arrays['value'][level, i, j]:.3f}"
            assert interval == f"{low:.3f} to {high:.3f}"
            assert stars == ("" if j == 2 else "**")
    shown = spec["matches"][0][spec["start"]["level"]]
    assert [cell for row in shown for cell in row if cell and cell not in page.words] == []


def test_a_site_without_values_has_no_best_match() -> None:
    panel = make_panel()
    panel.arrays["value"].setflags(write=True)
    panel.arrays["value"][0, 1] = np.nan
    rows = match_rows(panel, 0)
    assert rows[1][:3] == ["enc.norm", "-", "undefined"] and len({len(row) for row in rows}) == 1


def test_distances_are_read_the_other_way_round(tmp_path: Path, parse_page: Any) -> None:
    result = distances()
    page, (panel,) = parse_page(write(tmp_path, result)), result.panels
    (told,) = spec_of(page)["panels"]
    assert told["distance"] and "not below its null" in told["grey"] and "are above" in told["curve"]
    assert "closest site of student" in page.words and "not above" not in page.text
    best = [row[1] for row in spec_of(page)["matches"][0][1]]
    assert best == [panel.sites_b[j] for j in panel.arrays["value"][1].argmin(axis=1)]


# --- menus --------------------------------------------------------------------------------------------------


def test_one_panel_needs_no_menu_of_panels(tmp_path: Path, parse_page: Any) -> None:
    page = parse_page(write(tmp_path, make_comparison()))
    assert set(menus(page)) == {"level", "site_a", "site_b"}
    assert spec_of(page)["start"] == {"level": 1, "panels": [0, -1], "cell": ["dec.conv", "dec.conv"]}
    alone = make_comparison(make_panel(levels=1), levels=[(0.5, 0.5)])
    kinds = [a.get("type") for tag, a in parse_page(write(tmp_path, alone)).elements if tag == "input"]
    assert kinds == [], "no slider over one level"


def test_two_panels_stand_side_by_side(tmp_path: Path, parse_page: Any) -> None:
    page = parse_page(write(tmp_path, three_models()))
    assert {"panel0", "panel1"} <= set(menus(page))
    assert spec_of(page)["start"]["panels"] == [0, 1], "another pair of the same measure"
    page = parse_page(write(tmp_path, make_comparison(make_panel(), make_panel("rsa"))))
    assert spec_of(page)["start"]["panels"] == [0, 1]
    tables = [a for tag, a in page.elements if "data-matches" in a]
    assert [a["class"] for a in tables] == ["match", "match other"], "the other is only printed"


def test_noise_levels_of_both_models_have_a_menu_each(tmp_path: Path, parse_page: Any) -> None:
    page = parse_page(write(tmp_path, crossed()))
    spec = spec_of(page)
    assert {"sigma_a", "sigma_b"} <= set(menus(page))
    assert spec["crossed"] == {
        "a": ["0.1", "0.5", "2.5"],
        "b": ["0.1", "0.5"],
        "index": [[0, 1], [2, 3], [4, 5]],
    }
    assert spec["said"][1] == "0.1 (A) and 0.5 (B)" and spec["said"][3] == "0.5"
    assert "at 6 pairs of noise levels" in page.text
    part = make_comparison(make_panel(levels=2), levels=[(0.1, 0.5), (2.5, 0.1)])
    assert spec_of(parse_page(write(tmp_path, part)))["crossed"]["index"] == [[0, -1], [-1, 1]]


def test_everything_can_be_reached_and_read_without_a_mouse_or_colours(
    tmp_path: Path, parse_page: Any
) -> None:
    page = parse_page(write(tmp_path, three_models()))
    plots = [a for _, a in page.elements if a.get("class") == "plot"]
    assert len(plots) == 6 and all(a["role"] == "img" and "tables below" in a["aria-label"] for a in plots)
    assert sum(tag == "details" for tag, _ in page.elements) == 3, "numbers of each column, and provenance"
    controls = [a for tag, a in page.elements if tag in ("select", "input")]
    labels = sum(tag == "label" for tag, _ in page.elements)
    assert labels + sum("aria-label" in a for a in controls) >= len(controls) > 6
    scrolled = [a for tag, a in page.elements if a.get("class") == "scroll" and tag == "div"]
    assert len(scrolled) == 8 and all(a["tabindex"] == "0" for a in scrolled), "tables scroll by keyboard"
    assert "Grey with a stroke" in page.text


# --- safety -------------------------------------------------------------------------------------------------


def test_text_from_files_is_escaped_everywhere(tmp_path: Path, parse_page: Any) -> None:
    text = write(tmp_path, evil()).read_text(encoding="utf-8")
    page = parse_page(text)
    plain = parse_page(write(tmp_path, make_comparison()))
    assert len(page.scripts) == len(plain.scripts)
    assert EVIL not in text and "</script><b>" not in text
    for word in (EVIL, TRICKY):
        assert sum(word in said for said in page.words) > 8
    (told,) = spec_of(page)["panels"]
    assert told["sites_a"] == [EVIL, TRICKY] and told["remarks"] == [EVIL, TRICKY]
    values = [a["value"] for tag, a in page.elements if tag == "option"]
    assert values.count(EVIL) == values.count(TRICKY) == 2


def test_too_many_cells_are_left_out_and_it_says_so(
    tmp_path: Path, parse_page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linked, "MOST_CELLS", 40)
    page = parse_page(write(tmp_path, three_models()))
    assert len(spec_of(page)["panels"]) == 5, "12 + 4 + 6 + 12 + 4 cells"
    assert "this page shows the first 5 of 6 pairs and measures" in page.text
    monkeypatch.setattr(linked, "MOST_CELLS", 1)
    assert len(spec_of(parse_page(write(tmp_path, three_models())))["panels"]) == 1


def test_an_unknown_option_is_refused_before_the_page_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown embedding 'umpa': did you mean 'umap'"):
        write(tmp_path, make_comparison(), embedding="umpa")
    assert list(tmp_path.iterdir()) == []


# --- in a browser -------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVE = """
<script>
const seen = { errors: "" }, all = query => [...document.querySelectorAll(query)];
const text = query => all(query).map(e => e.textContent);
const later = () => new Promise(done => setTimeout(done, 300));
const set = async (role, value, kind) => {
  const menu = document.querySelector('[data-role="' + role + '"]');
  menu.value = value;
  menu.dispatchEvent(new Event(kind));
  await later();
};
window.onerror = message => { seen.errors += message; };
window.addEventListener("unhandledrejection", event => { seen.errors += event.reason; });
window.addEventListener("load", async () => {
  await later();
  seen.ticks = text(".ytick text");
  seen.markup = all(".plot b, .plot script, .plot a").length;
  await set("level", 0, "input");
  seen.heading = text(".match h3")[0];
  seen.cells = text(".match tbody td, .match tbody th");
  seen.menus = all('[data-role="level"]').map(e => e.value);
  await set("site_a", document.querySelector('[data-role="site_a"]').options[0].value, "change");
  seen.marked = text('[data-part="cell"]')[0];
  for (const fold of all("details")) fold.open = true;
  await later();
  seen.tables = all('[data-part="numbers"] table').map(e => e.rows.length);
  for (const kind of ["beforeprint", "afterprint"]) { window.dispatchEvent(new Event(kind)); await later(); }
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_page_works_in_a_browser(tmp_path: Path, parse_page: Any) -> None:
    result = evil()
    path = write(tmp_path, result)
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", DRIVE), encoding="utf-8")
    options = "headless no-sandbox disable-gpu no-first-run disable-background-networking dump-dom"
    command = [BROWSER, *(f"--{option}" for option in options.split()), "--virtual-time-budget=9000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    words = done.stdout.partition('<pre id="seen">')[2].partition("</pre>")[0]
    seen = json.loads(words.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["errors"] == "" and seen["markup"] == 0
    assert EVIL in seen["ticks"], "the name itself, not what it would be as markup"
    rows = match_rows(result.panels[0], 0)
    assert seen["cells"] == [cell for row in rows for cell in row]
    assert seen["heading"].endswith("sigma 0.1") and set(seen["menus"]) == {"0"}
    assert seen["marked"].startswith(f"Marked: {TRICKY}: {EVIL}; {EVIL}: ")
    # The grid, the sites of one name by depth, the levels; each under a heading.
    assert seen["tables"] == [3, 3, 3]
