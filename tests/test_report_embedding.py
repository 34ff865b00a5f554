"""The section of both models in one plane: which sites, from which files, and computed once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featlens.embedding import embed_pair
from featlens.errors import UsageError
from featlens.report import comparison_report
from featlens.report.embedding_section import cache_path
from featlens.store import FeatureStore
from tests.comparison_helpers import make_comparison, make_panel
from tests.test_embedding_picture import stub

SIGMAS = (0.1, 2.5)
SITES = {"enc.conv": 8, "dec.conv": 5, "only": 3}


@pytest.fixture
def files(tmp_path: Path, make_store: Callable[..., Any]) -> dict[str, Path]:
    """Two feature files with labels; the second has no site "only"."""
    paths = {name: tmp_path / f"{name}.h5" for name in ("teacher", "student")}
    make_store(paths["teacher"], SITES, SIGMAS, seed=1, labels=np.arange(60) % 3)
    make_store(paths["student"], {"enc.conv": 6, "dec.conv": 9}, SIGMAS, seed=2, labels=np.arange(60) % 3)
    return paths


@pytest.fixture
def result(files: dict[str, Path]) -> Any:
    """A comparison of both files."""
    models = {}
    for name, path in files.items():
        with FeatureStore(path) as store:
            models[name] = {"file": str(path), **store.manifest}
    panel = make_panel(sites_a=tuple(SITES), sites_b=("enc.conv", "dec.conv"))
    return make_comparison(panel, models=models)


@pytest.fixture
def entries(tmp_path: Path, parse_page: Any) -> Callable[..., Any]:
    """Writes a page and gives the pictures on it, and its text."""

    def make(comparison: Any, **options: Any) -> tuple[list[Any], str]:
        page = parse_page(comparison_report(comparison, tmp_path / "page.html", **options))
        specs = page.figures("featlensEmbedding")
        return (specs[0]["entries"] if specs else []), page.text

    return make


# --- what is shown ------------------------------------------------------------------------------------------


def test_the_last_common_site_at_the_middle_level(result: Any, files: dict[str, Path], entries: Any) -> None:
    (entry,), text = entries(result, embedding="pca")
    assert (entry["site_a"], entry["site_b"], entry["menu"]) == (
        "dec.conv", "dec.conv", "teacher and student: dec.conv, sigma 2.5",
    )  # fmt: skip
    with FeatureStore(files["teacher"]) as one, FeatureStore(files["student"]) as two:
        x, y = one.read("dec.conv", 2.5), two.read("dec.conv", 2.5)
        assert entry["ids"] == one.ids.tolist() and entry["labels"] == (np.arange(60) % 3).tolist()
    made = embed_pair(x, y, method="pca")
    shown = np.array(entry["points"]["pca"]).transpose(0, 2, 1)
    np.testing.assert_allclose(shown, made.coordinates, rtol=1e-4, atol=1e-9)
    said = f"{100 * made.residual:.0f} % of their variance disagrees"
    assert said in entry["facts"]["pca"] and "60 samples" in entry["facts"]["pca"]
    assert "Both models in one plane" in text and list(entry["points"]) == ["pca"]


def test_several_sites_and_levels(result: Any, entries: Any) -> None:
    options = {"embed_site": ["enc.conv", ("only", "enc.conv")], "embed_sigma": [0.1, 2.5]}
    found, _ = entries(result, embedding="pca", **options)
    places = [(entry["site_a"], entry["site_b"], entry["said"]) for entry in found]
    assert places == [
        ("enc.conv", "enc.conv", "Sigma 0.1."),
        ("only", "enc.conv", "Sigma 0.1."),
        ("enc.conv", "enc.conv", "Sigma 2.5."),
        ("only", "enc.conv", "Sigma 2.5."),
    ]


def test_a_site_that_the_other_model_lacks_goes_with_its_best_match(result: Any, entries: Any) -> None:
    (panel,) = result.panels
    (entry,), _ = entries(result, embedding="pca", embed_site="only", embed_sigma=0.1)
    best = panel.sites_b[int(panel.arrays["value"][0, 2].argmax())]
    assert (entry["site_a"], entry["site_b"]) == ("only", best)


def test_a_subset_is_shown_where_there_are_many_samples(result: Any, entries: Any) -> None:
    (entry,), _ = entries(result, embedding="pca", rows=20)
    (again,), _ = entries(result, embedding="pca", rows=20)
    (other,), _ = entries(result, embedding="pca", rows=20, seed=1)
    assert len(entry["ids"]) == len(entry["labels"]) == 20
    assert entry["ids"] == again["ids"] != other["ids"]
    assert entry["labels"] == [sample % 3 for sample in entry["ids"]]


def test_chance_is_called_chance(result: Any, entries: Any) -> None:
    (entry,), _ = entries(result, embedding="pca")
    assert "hardly better than chance" in entry["facts"]["pca"], "the files hold independent noise"
    (same,), _ = entries(
        result, embedding="pca", models={"student": result.provenance["models"]["teacher"]["file"]}
    )
    assert "chance" not in same["facts"]["pca"] and "0 % of their variance" in same["facts"]["pca"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_site": "enc.konv"}, "no site 'enc.konv' of 'teacher' to embed: did you mean 'enc.conv'"),
        ({"embed_site": ("enc.conv", "only")}, "no site 'only' of 'student' to embed"),
        ({"embed_sigma": 0.3}, "no sigma 0.3 to embed; choose from 0.1, 2.5"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_written(
    result: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        comparison_report(result, tmp_path / "page.html", **options)
    assert not (tmp_path / "page.html").exists()


# --- where features come from -------------------------------------------------------------------------------


def test_a_file_that_is_gone_is_said_in_a_line(result: Any, files: dict[str, Path], entries: Any) -> None:
    files["student"].unlink()
    found, text = entries(result, embedding="pca")
    assert found == [] and f"{files['student']} is no longer there" in text
    assert "Best matches" in text and "Everything that is recorded" in text
    assert entries(result, embedding="none")[1].count("no longer there") == 0


def test_a_file_that_was_written_anew_is_not_taken_for_the_old_one(
    result: Any, files: dict[str, Path], entries: Any, make_store: Any
) -> None:
    files["student"].unlink()
    make_store(files["student"], {"enc.conv": 6, "dec.conv": 9}, SIGMAS, sample_digest="d2")
    found, text = entries(result, embedding="pca")
    assert found == [] and "is not the file that was compared (its sample_digest is another)" in text


def test_arrays_have_to_be_given_again(result: Any, entries: Any, rng: np.random.Generator) -> None:
    sites = {"dec.conv": rng.normal(size=(2, 60, 4))}
    arrays = make_comparison(models={"teacher": {"file": None}, "student": {"file": None}})
    found, text = entries(arrays, embedding="pca")
    assert (
        found == [] and "teacher was compared from arrays; pass models={'teacher': ...} to report()" in text
    )
    (entry,), _ = entries(arrays, embedding="pca", models={"teacher": sites, "student": sites})
    assert entry["labels"] is None and entry["ids"] == list(range(60))
    assert "0 % of their variance disagrees" in entry["facts"]["pca"]
    _, text = entries(
        arrays, embedding="pca", models={"teacher": sites, "student": {"dec.conv": np.ones((2, 9, 4))}}
    )
    assert "teacher has 60 samples, student 9" in text


# --- UMAP, computed once ------------------------------------------------------------------------------------


def test_umap_is_computed_once_and_kept_beside_the_page(
    result: Any, entries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    calls = stub(monkeypatch)
    (first,), _ = entries(result, progress=said.append)
    assert list(first["points"]) == ["umap", "pca"] and len(calls) == 1
    assert said == ["UMAP of teacher and student: dec.conv, sigma 2.5"]
    monkeypatch.setitem(sys.modules, "umap", None)
    (second,), text = entries(result, progress=said.append)
    assert second == first and len(said) == 1 and "umap-learn" not in text
    # Other samples, another site or another seed are another picture.
    for change in ({"rows": 20}, {"embed_site": "enc.conv"}, {"seed": 1}, {"embed_sigma": 0.1}):
        (entry,), text = entries(result, **change)
        assert list(entry["points"]) == ["pca"] and "PCA only, embedding: UMAP needs the package" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "page.embedding.json", "page.html", "student.h5", "teacher.h5",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"format": "featlens.embedding.1", "umap": 3}', '{"format": "other", "umap": {}}'],
)
def test_a_damaged_cache_is_computed_anew(
    result: Any, entries: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    calls = stub(monkeypatch)
    cache = cache_path(tmp_path / "page.html")
    cache.write_text(damage)
    (first,), _ = entries(result)
    assert len(calls) == 1
    kept = json.loads(cache.read_text())
    for entry in (None, "x", [[[1.0, 2.0]]], [[[float("nan")] * 2] * 60] * 2):
        kept["umap"] = dict.fromkeys(kept["umap"], entry)
        cache.write_text(json.dumps(kept))
        assert entries(result)[0] == [first]
    assert len(calls) == 5 and entries(result)[0] == [first] and len(calls) == 5


def test_too_few_samples_for_umap(result: Any, entries: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub(monkeypatch)
    (entry,), text = entries(result, rows=14)
    assert list(entry["points"]) == ["pca"] and not calls
    assert "PCA only, UMAP needs 15 samples or more, there are 14" in text


def test_pca_leaves_no_file_beside_the_page(result: Any, entries: Any, tmp_path: Path) -> None:
    entries(result, embedding="pca")
    assert not cache_path(tmp_path / "page.html").exists()


def test_many_pairs_are_not_all_embedded(files: dict[str, Path], result: Any, entries: Any) -> None:
    told = result.provenance["models"]
    names = [f"s{k}" for k in range(8)]
    panels = [make_panel(b=name, sites_a=tuple(SITES), sites_b=("enc.conv", "dec.conv")) for name in names]
    models = {"teacher": told["teacher"]} | dict.fromkeys(names, told["student"])
    found, text = entries(make_comparison(*panels, models=models), embedding="pca")
    assert [entry["b"] for entry in found] == names[:6]
    assert "2 more pairs of models are not embedded" in text


def test_the_page_needs_no_torch(python: Any, files: dict[str, Path], tmp_path: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
import featlens
result = featlens.compare({"teacher": sys.argv[1], "student": sys.argv[2]}, permutations=3)
result.report(sys.argv[3], embedding="pca")
assert "umap" not in sys.modules
"""
    done = python(code, *files.values(), tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "featlensEmbedding('" in (tmp_path / "page.html").read_text(encoding="utf-8")
