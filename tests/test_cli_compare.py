"""``featlens compare`` on feature files: names, the table of best matches, JSON and outputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featlens.cli import main
from featlens.cli.matches import best_matches, shortened
from featlens.cli.sources import is_feature_file, named_sources, stem_of
from featlens.comparison.panel import QUANTITIES, Panel, stars
from featlens.comparison.result import Comparison


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs ``featlens compare``, which must succeed, as if its output were read by a program."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*words: Any) -> str:
        code = main(["compare", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "Traceback" not in err
        run.said = err  # type: ignore[attr-defined]
        return out

    return run


@pytest.fixture
def pair(tmp_path: Path, make_store: Callable[..., Any]) -> tuple[Path, Path]:
    """Two feature files of the same samples, and a third below a folder."""
    for seed, name in enumerate(("a", "b", "more/a")):
        path = tmp_path / f"{name}.h5"
        path.parent.mkdir(exist_ok=True)
        make_store(path, sigmas=(0.5, 2.5), seed=seed, n=80)
    return tmp_path / "a.h5", tmp_path / "b.h5"


def panel(direction: str = "similarity", remarks: tuple[str, ...] = (), **arrays: Any) -> Panel:
    """Panel of one noise level; the shape of ``value`` says the rest."""
    value = np.asarray(arrays["value"], dtype=np.float64)[None]
    full = {name: np.full(value.shape, np.nan) for name in QUANTITIES}
    full |= {name: np.asarray(array, dtype=np.float64)[None] for name, array in arrays.items()}
    flags = np.where(np.isnan(value), 1 if remarks else 0, 0).astype(np.int64)
    sites = [
        tuple(f"{side}.block{i}" for i in range(size))
        for side, size in zip("ab", value.shape[1:], strict=True)
    ]
    bounds = (-np.inf, 1.0)
    return Panel(
        "cka", direction, "debiased linear CKA", bounds, "one", "two", *sites, full, flags, remarks, {}
    )


def comparison(*panels: Panel, levels: Any = ((0.5, 0.5),), warnings: tuple[str, ...] = ()) -> Comparison:
    return Comparison(panels, levels, 80, warnings, {"models": {"one": {}, "two": {}}, "level": 0.95})


# --- names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["a.h5", "b.hdf5"], ["a", "b"]),
        (["x/a.h5", "y/a.h5"], ["x/a", "y/a"]),
        (["r/x/a.h5", "s/x/a.h5", "b.h5"], ["r/x/a", "s/x/a", "b"]),
        (["a.h5", "a.h5"], ["a (1)", "a (2)"]),
        (["T=runs/a", "runs/a"], ["T", "a"]),
        (["a=b.h5", "x/a.h5"], ["a", "x/a"]),
        (["python:models:make:width=4", "python:models:make:width=8"], ["make:width=4", "make:width=8"]),
        (["runs/t/snapshots/img-1/ema.safetensors", "e.h5"], ["ema", "e"]),
        (["my model = a.h5", "b.h5"], ["my model ", "b"]),
    ],
)
def test_every_model_gets_a_name_of_its_own(words: list[str], names: list[str]) -> None:
    assert [source.name for source in named_sources(words)] == [name.strip() for name in names]


def test_a_path_that_is_there_is_never_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=3.h5").touch()
    assert [(source.name, source.location) for source in named_sources(["lr=3.h5", "lr=4.h5"])] == [
        ("lr=3", "lr=3.h5"),
        ("lr", "4.h5"),
    ]
    assert stem_of(".") == tmp_path.name


def test_files_are_told_from_models(tmp_path: Path) -> None:
    (tmp_path / "features").touch()
    (tmp_path / "ema.safetensors").touch()
    files = ["a.h5", "x.hdf5", str(tmp_path / "features")]
    models = [
        "runs/a",
        "python:m:f:path=x.h5",
        "python:./x.py:f",
        str(tmp_path),
        f"{tmp_path}/ema.safetensors",
    ]
    assert [is_feature_file(name) for name in (*files, *models)] == [True] * 3 + [False] * 5


# --- the table ----------------------------------------------------------------------------------------------


def test_the_table_shows_the_best_match_with_its_doubt() -> None:
    one = panel(
        value=[[0.2, 0.9], [0.8, -0.0001]],
        ci_low=[[0.1, 0.85], [0.7, 0]],
        ci_high=[[0.3, 0.95], [0.9, 0]],
        null_high=[[0.05, 0.06], [0.07, 0.08]],
        p_family=[[0.5, 0.0004], [0.03, 0.9]],
    )
    text = best_matches(comparison(one, warnings=("only 9 samples",)))
    assert text.splitlines()[:5] == [
        "warning: only 9 samples",
        "",
        "A one   B two   cka (debiased linear CKA)   n 80",
        "sigma  site of A  best of B  value    95% interval  null 95%  p family",
        "  0.5  a.block0   b.block1   0.900  0.850 .. 0.950     0.060     <.001  ***",
    ]
    assert text.splitlines()[5].endswith(
        "  a.block1   b.block0   0.800  0.700 .. 0.900     0.070     0.030  *"
    )
    assert text.splitlines()[-1].startswith("* p family at most 0.05, ** at most 0.01")


def test_the_best_distance_is_the_smallest() -> None:
    text = best_matches(comparison(panel("distance", value=[[3.0, 0.5]], null_high=[[1.0, 2.0]])))
    assert "a.block0   b.block1   0.500    2.000" in text
    assert "null 5%" in text and "best: lowest value" in text
    assert "p family" not in text and "interval" not in text


def test_cells_without_a_value_are_explained() -> None:
    told = best_matches(comparison(panel(value=[[np.nan, np.nan], [0.5, np.nan]])))
    assert "a.block0   undefined" in told and "a.block1   b.block0   0.500" in told
    assert "undefined: 3 of 4 cells have no value: a site is constant" in told
    why = ("site 'a.block0' is constant",)
    told = best_matches(comparison(panel(value=[[np.nan, np.nan], [0.5, np.nan]], remarks=why)))
    assert "warning: site 'a.block0' is constant (3 of 4 cells)" in told
    assert "undefined: 3 of 4 cells have no value" in told


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_lines_fit_the_terminal(width: int) -> None:
    value = [[0.5, 0.1], [0.3, 0.2]]
    names = [f"encoder.level{i}.block0.attention.projection" for i in range(2)]
    arrays = dict.fromkeys(("value", "ci_low", "ci_high", "null_high", "p_family", "ceiling"), value)
    short = panel(**arrays, remarks=("a remark that is long enough to be broken in two or three",))
    fields = {**vars(short), "sites_a": tuple(names), "sites_b": tuple(names)}
    result = comparison(Panel(**fields), warnings=("a long warning " * 12,))
    text = best_matches(result, width)
    assert max(map(len, text.splitlines())) <= width
    assert "enc" in text and "value" in text and "p fam" in text
    assert ("interval" in text) == (width >= 60) and ("ceiling" in text) == (width >= 80)
    assert names[0] in best_matches(result)


def test_names_are_shortened_in_their_middle() -> None:
    name = "enc.64x64_block0.conv0"
    assert shortened(name, 22) == name and shortened(name, 10) == "enc....nv0"
    assert all(len(shortened(name, most)) == most for most in range(5, 22))
    assert [stars(p) for p in (0.0, 0.001, 0.01, 0.05, 0.051, np.nan)] == ["***", "***", "**", "*", "", ""]


def test_names_are_made_safe(tmp_path: Path, make_store: Any, call: Any) -> None:
    widths = {"<script>alert(1)": 4, "enc": 4}
    for seed, name in enumerate("ab"):
        make_store(tmp_path / f"{name}.h5", widths=widths, seed=seed)
    words = (f"\x1b[2Jevil={tmp_path / 'a.h5'}", f"<script>={tmp_path / 'b.h5'}", "--permutations", "5")
    text = call(*words)
    assert "\x1b" not in text and "A \\x1b[2Jevil   B <script>   " in text and "<script>alert(1)" in text
    found = json.loads(call(*words, "--json"))
    assert {cell["b"] for cell in found["cells"]} == {"<script>"}
    assert {cell["site_a"] for cell in found["cells"]} == set(widths)


def test_a_terminal_without_the_letters_gets_escapes(tmp_path: Path, make_store: Any, python: Any) -> None:
    for name in "ab":
        make_store(tmp_path / f"{name}.h5", widths={"größe": 4})
    code = (
        "import sys; sys.stdout.reconfigure(encoding='ascii')\n"
        "from featlens.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python(code, "compare", tmp_path / "a.h5", tmp_path / "b.h5", "--permutations", "2")
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfe" in done.stdout


# --- what is compared ---------------------------------------------------------------------------------------


def test_several_models_and_measures_have_a_block_each(pair: tuple[Path, Path], call: Any) -> None:
    third = pair[0].parent / "more" / "a.h5"
    words = (*pair, f"c={third}", "--measure", "cka,cka(estimator=biased)", "--permutations", "5")
    heads = [line for line in call(*words).splitlines() if line.startswith("A ")]
    assert [head.split("   ")[:2] for head in heads] == 2 * [["A a", "B b"], ["A a", "B c"], ["A b", "B c"]]
    assert sum("estimator='biased'" in head for head in heads) == 3
    heads = [line for line in call(*words, "--reference", "c").splitlines() if line.startswith("A ")]
    assert [head.split("   ")[:2] for head in heads] == 2 * [["A c", "B a"], ["A c", "B b"]]


def test_measures_may_be_repeated(pair: tuple[Path, Path], call: Any) -> None:
    words = ("--measure", "cka", "--measure", "cka(estimator=biased),cka", "--permutations", "0", "--json")
    found = json.loads(call(*pair, *words))
    assert list(dict.fromkeys(cell["measure"] for cell in found["cells"])) == [
        "cka",
        "cka(estimator='biased')",
    ]


def test_json_has_cells_and_provenance(pair: tuple[Path, Path], call: Any) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(call(*pair, "--json", "--permutations", "0"), parse_constant=refuse)
    assert set(found) >= {"cells", "provenance"} and len(found["cells"]) == 2 * 2 * 2
    keys = (
        "measure",
        "sigma",
        "site_a",
        "site_b",
        "value",
        "ci_low",
        "ci_high",
        "null",
        "p",
        "n",
        "warnings",
    )
    assert all(set(cell) >= set(keys) and cell["p"] is None and cell["n"] == 80 for cell in found["cells"])
    files = [told["file"] for told in found["provenance"]["models"].values()]
    assert files == [str(path) for path in pair]


def test_every_sigma_with_every_other(pair: tuple[Path, Path], call: Any) -> None:
    found = json.loads(call(*pair, "--cross-sigmas", "--json", "--permutations", "0"))
    levels = {(cell["sigma"], cell["sigma_b"]) for cell in found["cells"]}
    assert levels == {(a, b) for a in (0.5, 2.5) for b in (0.5, 2.5)}
    table = call(*pair, "--cross-sigmas", "--permutations", "0").splitlines()
    assert table[1].split()[:3] == ["sigma", "of", "B"]
    assert [line.split()[:2] for line in table[2:10:2]] == [
        [a, b] for a in ("0.5", "2.5") for b in ("0.5", "2.5")
    ]


def test_a_subset_of_the_rows(pair: tuple[Path, Path], call: Any) -> None:
    words = (*pair, "--rows", "60", "--json", "--permutations", "0")
    found = json.loads(call(*words))
    assert {cell["n"] for cell in found["cells"]} == {60}
    values = [cell["value"] for cell in found["cells"]]
    assert values == [cell["value"] for cell in json.loads(call(*words))["cells"]]
    assert values != [cell["value"] for cell in json.loads(call(*words, "--seed", "1"))["cells"]]


def test_without_intervals(pair: tuple[Path, Path], call: Any) -> None:
    found = json.loads(call(*pair, "--no-intervals", "--permutations", "0", "--json"))
    assert all(cell["ci_low"] is None and cell["ci_high"] is None for cell in found["cells"])
    assert "interval" not in call(*pair, "--no-intervals", "--permutations", "0").splitlines()[1]


def test_a_noise_ceiling_from_other_draws(tmp_path: Path, make_store: Any, call: Any) -> None:
    # Features that do not depend on the noise: the ceiling is 1.
    for name, seed, digest in (("a", 0, "d1"), ("b", 1, "d1"), ("a2", 0, "d2"), ("b2", 1, "d2")):
        make_store(tmp_path / f"{name}.h5", seed=seed, n=80, sample_digest=digest)
    files = [tmp_path / name for name in ("a.h5", "b.h5")]
    draws = ["--draw", f"a={tmp_path / 'a2.h5'}", "--draw", f"b={tmp_path / 'b2.h5'}"]
    found = json.loads(call(*files, *draws, "--permutations", "0", "--json"))
    assert all(cell["ceiling"] == pytest.approx(1) for cell in found["cells"])
    assert "ceiling" in call(*files, *draws, "--permutations", "0").splitlines()[1]


def test_partly_common_sigmas_give_a_notice(tmp_path: Path, make_store: Any, call: Any) -> None:
    make_store(tmp_path / "a.h5", sigmas=(0.5, 1.0, 2.5), n=80)
    make_store(tmp_path / "b.h5", sigmas=(0.5, 2.5, 5.0), n=80)
    words = (tmp_path / "a.h5", tmp_path / "b.h5", "--permutations", "0")
    first, *_ = call(*words).splitlines()
    assert first.startswith("warning: only the common noise levels are compared, 0.5, 2.5 ")
    found = json.loads(call(*words, "--json"))
    assert {cell["sigma"] for cell in found["cells"]} == {0.5, 2.5} and found["warnings"]
    call(*words, "-o", tmp_path / "x.csv")
    assert "featlens compare: warning: only the common noise levels" in call.said


def test_constant_features_have_no_value_and_a_reason(tmp_path: Path, call: Any) -> None:
    from featlens.store import FeatureWriter, SiteInfo

    rng = np.random.default_rng(0)
    for name in "ab":
        sites = [SiteInfo("flat", 0, 3), SiteInfo("enc", 1, 3)]
        with FeatureWriter.create(tmp_path / f"{name}.h5", sites, [0.5], range(60), {}) as writer:
            rows = {"flat": np.ones((60, 3), "f4"), "enc": rng.normal(size=(60, 3)).astype("f4")}
            writer.append(0, rows)
    text = call(tmp_path / "a.h5", tmp_path / "b.h5", "--permutations", "10")
    line = next(line for line in text.splitlines() if line.split()[1:2] == ["flat"])
    assert "undefined" in line
    assert "undefined: 3 of 4 cells have no value" in text and "constant" in text
    found = json.loads(call(tmp_path / "a.h5", tmp_path / "b.h5", "--permutations", "10", "--json"))
    assert sum(cell["value"] is None for cell in found["cells"]) == 3


# --- outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nc", ".csv"])
def test_a_file_is_written_in_a_new_folder(pair: tuple[Path, Path], call: Any, suffix: str) -> None:
    out = pair[0].parent / "new" / "deeper" / f"x{suffix}"
    assert call(*pair, "-o", out, "--permutations", "5") == f"{out}\n"
    assert out.stat().st_size > 100


def test_the_page_gets_what_it_needs(
    pair: tuple[Path, Path], call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}
    monkeypatch.setattr(Comparison, "report", lambda self, path, **options: got.update(options, path=path))
    out = pair[0].parent / "x.html"
    options = (
        "--embedding",
        "pca",
        "--embed-site",
        "enc.conv,enc.conv=dec.conv",
        "--embed-sigma",
        "2.5",
        "--permutations",
        "0",
    )
    assert call(*pair, "-o", out, *options) == f"{out}\n"
    assert got.pop("progress") is not None
    assert got == {
        "path": str(out),
        "models": {"a": pair[0], "b": pair[1]},
        "embedding": "pca",
        "embed_site": ["enc.conv", ("enc.conv", "dec.conv")],
        "embed_sigma": [2.5],
    }


def test_dry_run_says_what_would_be_compared(pair: tuple[Path, Path], call: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = (*pair, "new=runs/none", "--measure", "cka( estimator = biased )", "--dry-run", "--cache", cache)
    found = json.loads(call(*words))
    assert found["models"] == {"a": str(pair[0]), "b": str(pair[1]), "new": "runs/none"}
    assert found["extracted_first"] == ["new"] and found["extraction"] == {"cache": str(cache)}
    assert found["pairs"] == [["a", "b"], ["a", "new"], ["b", "new"]]
    assert found["measure"] == ["cka(estimator='biased')"]
    assert not cache.exists() and "planned" not in found
    plan = json.loads(call(*pair, "--dry-run", "--permutations", "30"))["planned"]
    assert plan["n"] == 80 and plan["choices"][0]["permutations"] == 30


def test_explain_says_why(pair: tuple[Path, Path], call: Any) -> None:
    text = call(*pair, "--explain")
    assert len(text.splitlines()) > 1 and ("tiles" in text or "features" in text)
    assert isinstance(json.loads(call(*pair, "--explain", "--json")), dict)
    # A plan that is asked for is the plan that is taken.
    assert "tiles" in call(*pair, "--explain", "--plan", "tiles")
