"""``featlens geometry``: its table, its intervals, what it refuses, and that torch is not missed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featlens.cli import main
from featlens.measures import geometry
from featlens.measures.geometry import GEOMETRY
from featlens.store import FeatureStore, FeatureWriter, SiteInfo


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Runs the command, which must succeed; stdout and stderr."""

    def run(*words: Any) -> tuple[str, str]:
        code = main(["geometry", *map(str, words)])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out, err

    return run


def test_one_row_for_each_sigma_and_site(tmp_path: Path, make_store: Any, call: Any) -> None:
    path = tmp_path / "a.h5"
    written = make_store(path, sigmas=(0.5, 2.5))
    found = json.loads(call(path, "--json", "--resamples", "5")[0])
    assert [(cell["sigma"], cell["site"]) for cell in found["cells"]] == [
        (0.5, "enc.conv"), (0.5, "dec.conv"), (2.5, "enc.conv"), (2.5, "dec.conv")
    ]  # fmt: skip
    for cell in found["cells"]:
        expected = geometry(written[cell["site"], cell["sigma"]])
        assert {key: cell[key] for key in GEOMETRY} == pytest.approx(expected, rel=1e-9)
        assert cell["n"] == 60 and cell["width"] == {"enc.conv": 8, "dec.conv": 5}[cell["site"]]
        for key in GEOMETRY:
            assert cell[f"{key}_low"] <= cell[key] <= cell[f"{key}_high"]
        assert cell["effective_rank_low"] < cell["effective_rank"]
    assert found["provenance"]["sample_digest"] == "d1" and found["provenance"]["resamples"] == 5
    assert found["notices"] == []


def test_the_same_seed_gives_the_same_intervals(a: Path, call: Any) -> None:
    words = (a, "--json", "--resamples", "4", "--sites", "enc.*", "--sigmas", "2.5")
    first, again, other = (json.loads(call(*words, "--seed", seed)[0])["cells"] for seed in (1, 1, 2))
    assert first == again != other
    assert [cell["site"] for cell in first] == ["enc.conv"] and first[0]["sigma"] == 2.5
    assert {key: first[0][key] for key in GEOMETRY} == {key: other[0][key] for key in GEOMETRY}


def test_the_table_for_the_terminal(a: Path, call: Any) -> None:
    lines = call(a, "--resamples", "4")[0].splitlines()
    assert lines[0].split() == ["sigma", "site", "n", "width", *GEOMETRY]
    assert [line.split()[:4] for line in lines[1:5]] == [
        ["0.5", "enc.conv", "60", "8"], ["0.5", "dec.conv", "60", "5"],
        ["2.5", "enc.conv", "60", "8"], ["2.5", "dec.conv", "60", "5"],
    ]  # fmt: skip
    assert lines[1].count("+-") == 6
    assert lines[5:] == ["+-: 95 % interval from random halves of the samples"]


def test_without_resamples_there_are_no_intervals(a: Path, tmp_path: Path, call: Any) -> None:
    assert "+-" not in call(a, "--resamples", "0")[0]
    out = tmp_path / "new" / "table.csv"
    assert call(a, "--resamples", "0", "-o", out)[0] == f"{out}\n"
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert len(rows) == 4 and float(rows[0]["rankme"]) > 1 and rows[0]["rankme_low"] == ""
    found = json.loads(call(a, "--resamples", "0", "--json")[0])
    assert found["cells"][0]["rankme_high"] is None


def test_a_table_holds_what_json_says(a: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "table.csv"
    cells = json.loads(call(a, "--resamples", "3", "--json", "-o", out)[0])["cells"]
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [{key: str(value) for key, value in cell.items()} for cell in cells] == rows


def test_of_many_samples_some_are_drawn_and_it_is_said(tmp_path: Path, make_store: Any, call: Any) -> None:
    path = tmp_path / "a.h5"
    written = make_store(path, n=700, widths={"enc": 3})
    words = (path, "--json", "--resamples", "0", "--n", "100")
    out, err = call(*words)
    assert err == "featlens geometry: 100 of 700 samples are used, drawn with seed 0; --n 700 takes all\n"
    found = json.loads(out)
    assert found["notices"] == [err.removeprefix("featlens geometry: ").strip()]
    assert found["cells"][0]["n"] == 100
    other = json.loads(call(*words, "--seed", "1")[0])
    assert other["cells"] != found["cells"] == json.loads(call(*words)[0])["cells"]
    whole, err = call(path, "--json", "--resamples", "0")
    assert err == "" and json.loads(whole)["cells"][0]["two_nn"] == geometry(written["enc", 0.5])["two_nn"]


def test_the_rows_drawn_are_rows_of_the_file(a: Path) -> None:
    from featlens.cli.geometry import _read

    rows = np.array([0, 7, 8, 31, 59])
    with FeatureStore(a) as store:
        np.testing.assert_array_equal(_read(store, "enc.conv", 2.5, rows), store.read("enc.conv", 2.5)[rows])


def write(path: Path, x: np.ndarray, name: str = "enc") -> None:
    sites = [SiteInfo(name, 0, x.shape[1])]
    with FeatureWriter.create(path, sites, [0.5], np.arange(len(x)), {}) as writer:
        writer.append(0, {name: x.astype(np.float32)})


def test_undefined_numbers_are_null_in_json_and_dashes_in_the_table(tmp_path: Path, call: Any) -> None:
    path = tmp_path / "a.h5"
    write(path, np.full((30, 3), 2.0))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    cell = json.loads(call(path, "--json", "--resamples", "3")[0], parse_constant=refuse)["cells"][0]
    assert cell["effective_rank"] is None and cell["two_nn"] is None
    assert cell["dead_units"] == cell["dead_units_low"] == 1
    assert call(path, "--resamples", "3")[0].splitlines()[1].split()[4] == "-"


def test_few_samples_have_no_intervals(tmp_path: Path, make_store: Any, call: Any, fail: Any) -> None:
    path = tmp_path / "a.h5"
    make_store(path, n=7)
    out, err = call(path)
    assert err == "featlens geometry: no intervals: 7 samples are used and 8 needed\n" and "+-" not in out
    make_store(tmp_path / "b.h5", n=3)
    assert "has 3 samples; at least 4 are needed" in fail(1, "geometry", tmp_path / "b.h5")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damage_is_named_by_site_sigma_and_row(a: Path, fail: Any, value: float) -> None:
    with h5py.File(a, "r+") as file:
        file["sites/dec.conv"][1, 41, 2] = value
    line = fail(1, "geometry", a)
    assert "row 41 of site 'dec.conv' at sigma 2.5 holds NaN or infinity; extract again" in line
    assert main(["geometry", str(a), "--sites", "enc.*", "--resamples", "0"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sites", "enc.konv"], "did you mean 'enc.conv'"),
        (["--sites", ""], "expected site names or patterns separated by commas, got ''"),
        (["--sigmas", "0.7"], "has no sigma 0.7; it has 0.5, 2.5"),
        (["--n", "3"], "--n must be 4 or more, got 3"),
        (["--resamples", "1"], "--resamples must be 0 or at least 2, got 1"),
        (["--resamples", "-1"], "--resamples must be 0 or at least 2, got -1"),
        (["-o", "table.html"], "-o table.html: expected a name that ends in .csv"),
        (["--sights", "enc"], "did you mean '--sites'"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(a: Path, fail: Any, words: list[str], said: str) -> None:
    assert said in fail(2, "geometry", a, *words)


def test_wrong_files_are_refused(tmp_path: Path, make_store: Any, fail: Any) -> None:
    assert "there is no such file" in fail(1, "geometry", tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    assert "expected a feature file (HDF5)" in fail(1, "geometry", tmp_path / "text.h5")
    make_store(tmp_path / "part.h5", rows=0)
    assert "is incomplete: 0 of 60 rows" in fail(1, "geometry", tmp_path / "part.h5")


def test_shared_features_are_measured_once(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import featlens.cli.geometry

    path = tmp_path / "a.h5"
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    sites = [SiteInfo("a", 0, 3), SiteInfo("b", 1, 3, same_as="a")]
    with FeatureWriter.create(path, sites, [0.5], np.arange(20), {}) as writer:
        writer.append(0, {"a": x})
    calls, numbers = [], featlens.cli.geometry._numbers
    monkeypatch.setattr(
        featlens.cli.geometry, "_numbers", lambda *words: calls.append(words) or numbers(*words)
    )
    first, second = json.loads(call(path, "--json", "--resamples", "0")[0])["cells"]
    assert len(calls) == 1
    assert {**first, "site": "b"} == second


def test_only_one_site_is_in_memory(tmp_path: Path, make_store: Any, call: Any) -> None:
    import tracemalloc

    path = tmp_path / "a.h5"
    widths = {f"site{number}": 400 for number in range(12)}
    make_store(path, n=500, widths=widths)
    tracemalloc.start()
    call(path, "--resamples", "0", "--sites", "site0")
    one = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    call(path, "--resamples", "0")
    every = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A site takes 0.8 MB as it is read.
    assert every < one + 2e6


TORCHLESS = """
import sys
sys.modules["torch"] = None
from featlens.cli import main
code = main(["geometry", sys.argv[1], "--resamples", "3", "-o", sys.argv[2]])
print(code, sorted({"scipy", "sklearn", "pandas", "xarray", "plotly"} & set(sys.modules)))
"""


def test_it_needs_neither_torch_nor_anything_heavy(a: Path, tmp_path: Path, python: Any) -> None:
    done = python(TORCHLESS, a, tmp_path / "table.csv")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_command_in_its_own_process(a: Path, command: Any) -> None:
    done = command("geometry", a, "--resamples", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["cells"]) == 4
    assert "Traceback" in command("geometry", a, "--sites", "no", "--debug").stderr
