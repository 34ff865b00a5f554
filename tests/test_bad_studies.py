"""Wrong settings and folders of studies: one clear line, and nothing of an earlier run is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from featlens.files import lock


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digit"], "unknown preset 'digit': did you mean 'digits'? (or give a .toml file)"),
        (["nowhere.toml"], "no configuration file nowhere.toml"),
        (["digits", "--inits", "techer"], "did you mean 'teacher'"),
        (["digits", "--inits", ""], "expected names separated by commas, got ''"),
        (["digits", "--ratio-inits", "randm"], "did you mean 'random'"),
        (["digits", "--divergences", "reverse_lk"], "did you mean 'reverse_kl' or 'softened_reverse_kl'?"),
        (["digits", "--seeds", "0,0"], "names an entry twice"),
        (["digits", "--seeds", "0,one"], "expected whole numbers separated by commas"),
        (["digits", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_study_refuses_settings_that_make_no_sense(
    tmp_path: Path, fail: Any, words: list[str], said: str
) -> None:
    assert said in fail(2, "study", *words, "-o", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("[teacher]\nimagess = 5\n", "unknown key 'teacher.imagess': did you mean 'images'"),
        ("techer = 1\n", "unknown key 'techer': did you mean 'teacher'?"),
        ("[teacher]\nimages = 'many'\n", "teacher.images must be of type int, got 'many'"),
        ("[teacher]\nimages = true\n", "teacher.images must be of type int, got True"),
        ("teacher = 3\n", "teacher must be a table, got 3"),
        ("seeds = 3\n", "seeds must be a list, got 3"),
        ("seeds = ['a']\n", "seeds[0] must be of type int, got 'a'"),
        ("[teacher]\nimages = 0\n", "images must be above 0, got 0"),
        ("[features]\nsigmas = [-1.0]\n", "sigmas must be one or more numbers above 0"),
        ("preset = 'digit'\n", "did you mean 'digits'?"),
        ("preset = [1]\n", "unknown preset [1]: choose from digits"),
        ("data = 'cifar'\n", "unknown sample set 'cifar'"),
        ("[teacher\n", "is not valid TOML"),
        ("\xff", "is not valid TOML"),
    ],
)
@pytest.mark.parametrize("name", ["study", "train"])
def test_a_wrong_settings_file_is_explained(
    tmp_path: Path, fail: Any, name: str, contents: str, said: str
) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_bytes(contents.encode("latin-1"))
    assert said in fail(2, name, settings, "-o", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["study", "train", "distill"])
def test_a_folder_of_another_configuration_is_left_alone(
    tiny_study: Path, tiny_toml: Path, tmp_path: Path, fail: Any, name: str, file_digests: Any
) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_text(tiny_toml.read_text().replace("images = 640", "images = 704"))
    before = file_digests(tiny_study)
    line = fail(2, name, settings, "-o", tiny_study)
    assert "another configuration: teacher.images: 640 there, 704 asked for" in line
    assert file_digests(tiny_study) == before


def test_a_changed_loss_setting_is_not_overlooked_in_a_study(
    tiny_study: Path, tiny_toml: Path, fail: Any, file_digests: Any
) -> None:
    before = file_digests(tiny_study)
    line = fail(2, "distill", tiny_toml, "-o", tiny_study, "--set", "distill.lr=0.123", "--dry-run")
    assert "distill.lr: 0.0003 there, 0.123 asked for" in line
    assert file_digests(tiny_study) == before


@pytest.mark.parametrize("name", ["study", "train", "distill"])
def test_the_folder_of_a_single_run_is_no_study(
    tiny_study: Path, tiny_toml: Path, fail: Any, name: str, file_digests: Any
) -> None:
    before = file_digests(tiny_study)
    assert "holds a single run, not a study" in fail(2, name, tiny_toml, "-o", tiny_study / "teacher")
    assert file_digests(tiny_study) == before


@pytest.mark.parametrize("name", ["study", "train", "distill"])
def test_a_study_that_runs_elsewhere_is_left_alone(
    tiny_study: Path, tiny_toml: Path, fail: Any, name: str
) -> None:
    with lock(tiny_study / ".lock", "the study"):
        assert "is in use by another process" in fail(1, name, tiny_toml, "-o", tiny_study)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--init", "techer"], "did you mean 'teacher'"),
        (["--ratio-init", "randm"], "did you mean 'random'"),
        (["--divergence", "reverse_lk"], "did you mean 'reverse_kl' or 'softened_reverse_kl'?"),
    ],
)
def test_distill_names_the_nearest_choice(tmp_path: Path, fail: Any, words: list[str], said: str) -> None:
    assert said in fail(2, "distill", "digits", "-o", tmp_path / "new", *words)


def test_report_needs_a_study(tiny_study: Path, tmp_path: Path, fail: Any) -> None:
    assert f"{tmp_path} holds no study" in fail(2, "report", tmp_path)
    assert "holds a single run" in fail(2, "report", tiny_study / "teacher")
    (tmp_path / "study.toml").write_text("[teacher\n")
    assert "is not valid TOML" in fail(2, "report", tmp_path)


# --- what is needed only after hours is refused at once ---------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words", "said"),
    [
        ("", ["--teacher", "nowhere"], "no teacher at nowhere"),
        ("", ["--teacher", "{file}"], "'featlens convert {file} RUN' makes a run of a .pkl"),
        ("", ["--teacher", "{folder}"], "'featlens convert {folder} RUN' makes a run of a .pkl"),
        ("", ["--loss", "python:nowhere_at_all:f"], "nowhere_at_all"),
        ("", ["--set", "distill.weighting=python:nowhere_at_all:f"], "nowhere_at_all"),
        ("match = 'dex.*'\ntake = 'teacher'", ["--init", "mine"], "dex.*"),
        ("match = 'dec.*'\ntake = 'copy'\nsource = 'nowhere'", ["--init", "mine"], "no source 'nowhere'"),
    ],
)
def test_what_a_student_needs_is_looked_at_before_anything_is_trained(
    tmp_path: Path, fail: Any, settings: str, words: list[str], said: str
) -> None:
    file, folder = tmp_path / "edm.pkl", tmp_path / "diffusers"
    file.write_bytes(b"x")
    folder.mkdir()
    mine = tmp_path / "mine.toml"
    mine.write_text(f"[[custom]]\nname = 'mine'\n[[custom.rules]]\n{settings}\n" if settings else "")
    given = [word.format(file=file, folder=folder) for word in words]
    code = 1 if "no source" in said else 2
    line = fail(code, "distill", mine, "-o", tmp_path / "new", *given)
    assert said.format(file=file, folder=folder) in line
    assert not (tmp_path / "new").exists()
