"""Cases that a reading with fresh eyes found: each was wrong once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featlens as fl
from featlens.cli import main
from featlens.denoiser import EDMDenoiser
from featlens.errors import FeatlensError, UsageError
from featlens.reduce import gap, grid, resolve
from featlens_trainers.initialisation import build_denoiser
from featlens_trainers.networks import UNetConfig
from featlens_trainers.presets import resolve_study
from featlens_trainers.settings import FeatureConfig, StudyConfig, TeacherConfig
from featlens_trainers.study import Study


def test_the_divergence_of_a_single_run_counts_where_no_list_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[distill]\ndivergence = "js"\n', encoding="utf-8")
    config = resolve_study(str(path))
    assert config.divergences == ("js",) and config.distill.divergence == "js"


def test_the_list_of_divergences_decides() -> None:
    config = resolve_study("digits", overrides={"divergences": ["js", "reverse_kl"]})
    assert config.distill.divergence == "js"


def test_reductions_of_ones_own_have_different_names() -> None:
    def scaled(factor: float) -> Any:
        return lambda x: gap(x) * factor

    means, maxima = resolve(lambda x: x.flatten(2).mean(2))[0], resolve(lambda x: x.flatten(2).amax(2))[0]
    assert means != maxima
    assert resolve(scaled(1.0))[0] != resolve(scaled(2.0))[0]
    assert resolve(scaled(2.0))[0] == resolve(scaled(2.0))[0]
    assert resolve(gap)[0] == "gap" and resolve(grid(2))[0] == resolve("grid(2)")[0] == "grid(2)"


def test_a_finished_file_of_another_reduction_or_model_is_refused(tmp_path: Path) -> None:
    samples = fl.SampleSet.load("digits", n=20)
    model = build_denoiser(UNetConfig(channels=8), 0.75, 0)
    options: dict[str, Any] = {"sigmas": [0.5], "sites": "enc.*", "out": tmp_path / "a.h5"}
    fl.extract(model, samples, reduce=lambda x: x.flatten(2).mean(2), **options).close()
    with pytest.raises(FeatlensError, match="reducer"):
        fl.extract(model, samples, reduce=lambda x: x.flatten(2).amax(2), **options)
    other = EDMDenoiser(model.network, (1, 8, 8), sigma_data=0.1)
    options["out"] = tmp_path / "b.h5"
    fl.extract(model, samples, **options).close()
    with pytest.raises(FeatlensError, match="sigma_data"):
        fl.extract(other, samples, **options)


def test_labels_that_no_run_would_use_are_refused() -> None:
    with pytest.raises(UsageError, match="augment_labels = 9"):
        StudyConfig(network=UNetConfig(channels=8), teacher=TeacherConfig(augment=0.1))


def test_settings_that_fail_late_are_refused_early() -> None:
    with pytest.raises(UsageError, match="twice"):
        FeatureConfig(sigmas=(0.5, 0.5))
    with pytest.raises(UsageError, match="lr"):
        TeacherConfig(lr=float("inf"))


def test_run_works_in_a_script_without_a_main_guard(tiny_toml: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from featlens_trainers import Study, resolve_study\n"
        f"config = resolve_study({str(tiny_toml)!r}, overrides={{'inits': ['random']}})\n"
        f"print(Study.open({str(tmp_path / 'study')!r}, config).run())\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "report.html"


def test_tensors_are_compared_wherever_they_are() -> None:
    x = torch.randn(30, 4, requires_grad=True)
    result = fl.compare({"a": {"s": x}, "b": {"s": x.to(torch.bfloat16)}}, permutations=0)
    assert result.same_site()["s"][0] > 0.99


@pytest.fixture
def study(tiny_study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_study, tmp_path / "study"))


def test_an_analysis_whose_results_were_lost_is_made_again(study: Path) -> None:
    lost = study / "features" / "teacher-probe.json"
    before = json.loads(lost.read_text(encoding="utf-8"))
    lost.unlink()
    Study.open(study).run()
    assert json.loads(lost.read_text(encoding="utf-8"))["cells"] == before["cells"]


def test_a_damaged_picture_does_not_block_the_report(study: Path) -> None:
    (study / "teacher" / "samples.npy").write_bytes(b"x")
    assert main(["report", str(study)]) == 0
    assert "start: random" in (study / "report.html").read_text(encoding="utf-8")


def test_a_report_elsewhere_leaves_the_study_as_it_is(study: Path, tmp_path: Path, file_digests: Any) -> None:
    before = file_digests(study)
    assert main(["report", str(study), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 1_000_000
    assert file_digests(study) == before


def test_an_incomplete_study_file_is_not_taken_for_a_study(study: Path) -> None:
    (study / "study.toml").write_text('preset = "digits"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="incomplete"):
        Study.open(study)


def test_versions_are_those_of_the_runs(study: Path) -> None:
    from featlens_trainers.results import collect

    record = study / "teacher" / "run.json"
    about = json.loads(record.read_text(encoding="utf-8"))
    about["versions"]["torch"] = "1.2.3"
    record.write_text(json.dumps(about), encoding="utf-8")
    found = collect(study, Study.open(study).config)["versions"]["torch"]
    assert "1.2.3" in found and torch.__version__ in found


def test_students_of_another_classifier_are_not_mixed(study: Path) -> None:
    from featlens_trainers.snapshots import read_tensors, write_tensors

    path = study / "classifier" / "classifier.safetensors"
    tensors, about = read_tensors(path)
    tensors["feature_scale"] = torch.tensor(float(np.pi))
    write_tensors(path, tensors, about)
    with pytest.raises(FeatlensError, match="classifier"):
        Study.open(study).run()
