"""Conversions end to end: what is recognised, what is written, and what is never replaced."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

import featlens
from featlens.cli import main
from featlens.denoiser import weights_digest
from featlens.errors import FeatlensError, UsageError
from featlens_trainers.convert import plan_conversion, read_diffusers_folder
from featlens_trainers.convert.names import recognise
from featlens_trainers.runs import newest_snapshot, read_run
from featlens_trainers.settings.network import DiTConfig, UNetConfig
from featlens_trainers.snapshots import load_denoiser, save_denoiser
from tests.convert_helpers import ADM, UNET, denoiser_of, write_edm

SMALL = UNetConfig(channels=8, labels=2, dropout=0.1)
NETWORKS = {"unet": SMALL, "adm": ADM, "dit": DiTConfig(width=16, depth=2, heads=2)}


@pytest.fixture
def call(capsys):
    """Runs the command: exit code, stdout and stderr."""

    def run(*words):
        code = main(["convert", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def pickled(tmp_path):
    return write_edm(tmp_path / "released", denoiser_of(UNET, sigma_data=0.6))


@pytest.fixture
def student(tmp_path):
    """A run as students have it."""
    path = tmp_path / "run" / "snapshots" / "img-00000064" / "ema.safetensors"
    path.parent.mkdir(parents=True)
    save_denoiser(path, denoiser_of(SMALL, seed=5), images=64, sigma_init=1.5)
    record = {"format": "featlens.run", "version": 1, "kind": "student", "status": "done"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return tmp_path / "run"


# --- what is written ----------------------------------------------------------------------------------------


def test_a_pickle_becomes_a_run_that_all_commands_take(tmp_path, pickled, call, capsys):
    out = tmp_path / "teacher"
    code, said, err = call(pickled, out)
    assert (code, err) == (0, "")
    given = denoiser_of(UNET, sigma_data=0.6)
    first, last = said.splitlines()
    assert first.startswith("network of EDM, ") and weights_digest(given) in first
    assert last == str(out)
    record = read_run(out)
    assert (record["kind"], record["status"]) == ("teacher", "done")
    assert record["config"]["origin"]["file"] == "released"
    assert record["config"]["network"]["channel_mult"] == [1, 2]
    assert record["info"]["digest"] == weights_digest(given)
    denoiser, about = load_denoiser(newest_snapshot(out))
    assert weights_digest(denoiser) == weights_digest(given)
    assert (denoiser.sigma_data, about["sigma_init"]) == (0.6, 2.5)
    assert weights_digest(featlens.load(out)) == weights_digest(given)
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "snapshots"]
    assert main(["sample", str(out), "-o", str(tmp_path / "x.npy"), "--n", "2", "--steps", "2"]) == 0
    capsys.readouterr()


def test_a_pickle_with_sigma_init_is_a_student(tmp_path, pickled, call):
    code, said, _ = call(pickled, tmp_path / "out", "--sigma-init", "1.25", "--json")
    assert code == 0
    facts = json.loads(said)
    assert (facts["kind"], facts["sigma_init"], facts["found"], facts["form"]) == (
        "student",
        1.25,
        "edm",
        "run",
    )
    assert facts["files"] == ["run.json", "snapshots/img-00000000/ema.safetensors"]
    assert all((tmp_path / "out" / name).is_file() for name in facts["files"])
    assert featlens.load(tmp_path / "out").sigma_init == 1.25


@pytest.mark.parametrize("form", NETWORKS)
def test_to_diffusers_and_back_nothing_changes(tmp_path, form):
    given = denoiser_of(NETWORKS[form], sigma_data=0.7)
    path = tmp_path / "ema.safetensors"
    save_denoiser(path, given, sigma_init=3.5)
    plan_conversion(path, tmp_path / "folder").write()
    model = featlens.load(tmp_path / "folder")
    assert weights_digest(model) == weights_digest(given)
    assert (model.sigma_init, model.sigma_data) == (3.5, 0.7)
    assert weights_digest(featlens.load(tmp_path / "folder" / "unet")) == weights_digest(given)
    plan_conversion(tmp_path / "folder", tmp_path / "again").write()
    found, about = load_denoiser(newest_snapshot(tmp_path / "again"))
    assert weights_digest(found) == weights_digest(given)
    assert (about["sigma_init"], found.sigma_data, found.network.config) == (3.5, 0.7, NETWORKS[form])


def test_the_kind_of_a_run_survives(tmp_path, student, call):
    assert call(student, tmp_path / "folder")[0] == 0
    assert json.loads((tmp_path / "folder" / "unet" / "config.json").read_text())["kind"] == "student"
    assert call(tmp_path / "folder", tmp_path / "back")[0] == 0
    assert read_run(tmp_path / "back")["kind"] == "student"
    snapshot = student / "snapshots" / "img-00000064"
    for number, source in enumerate((snapshot, snapshot / "ema.safetensors")):
        assert plan_conversion(source, tmp_path / str(number)).converted.kind == "student"


def test_a_pickle_becomes_a_folder_of_diffusers_at_once(tmp_path, pickled, call):
    assert call(pickled, tmp_path / "folder", "--to", "diffusers")[0] == 0
    assert weights_digest(featlens.load(tmp_path / "folder")) == weights_digest(denoiser_of(UNET))


def test_a_dry_run_reads_everything_and_writes_nothing(tmp_path, pickled, call):
    before = sorted(tmp_path.iterdir())
    code, said, _ = call(pickled, tmp_path / "new" / "out", "--dry-run")
    assert code == 0 and "would become a run" in said
    assert json.loads(call(pickled, tmp_path / "out", "--dry-run", "--json")[1])["files"] == []
    assert sorted(tmp_path.iterdir()) == before
    pickled.write_bytes(pickled.read_bytes()[:-100])
    assert call(pickled, tmp_path / "out", "--dry-run")[0] == 1


def test_diffusers_is_not_needed_to_write_or_load(tmp_path, student, python):
    code = """
import sys
sys.modules["diffusers"] = None
import featlens
from featlens_trainers.convert import plan_conversion
plan_conversion(sys.argv[1], sys.argv[2]).write()
print(featlens.load(sys.argv[2]).sample_shape)
"""
    done = python(code, student, tmp_path / "out")
    assert done.stdout == "(1, 8, 8)\n", done.stderr


# --- what is refused ----------------------------------------------------------------------------------------


def test_nothing_is_replaced_that_a_conversion_did_not_write(tmp_path, pickled, student, call):
    out = tmp_path / "out"
    assert call(pickled, out)[0] == 0
    stamp = (out / "run.json").read_bytes()
    code, _, err = call(pickled, out)
    assert code == 2 and f"{out} is there already; choose another name, or replace it with --force" in err
    assert (out / "run.json").read_bytes() == stamp
    assert call(pickled, out, "--to", "diffusers", "--force")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["model_index.json", "unet"]
    assert call(pickled, out, "--force")[0] == 0
    assert read_run(out)["kind"] == "teacher"
    photos = tmp_path / "photos"
    photos.mkdir()
    assert call(pickled, photos, "--dry-run")[0] == 0
    (photos / "one.png").write_bytes(b"x")
    for taken in (photos, student, pickled):
        for force in ((), ("--force",)):
            code, _, err = call(tmp_path / "released", taken, *force)
            assert code == 2 and str(taken) in err
    assert (photos / "one.png").exists() and (student / "run.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failure_leaves_what_was_there(tmp_path, pickled, monkeypatch):
    out = tmp_path / "out"
    plan_conversion(pickled, out).write()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    plan = plan_conversion(pickled, out, "diffusers", force=True)

    def broken(*arguments):
        raise OSError(28, "no space")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(FeatlensError, match="the disk is full"):
        plan.write()
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "released"]


def test_the_source_itself_is_never_the_target(tmp_path, student, pickled, call):
    call(student, tmp_path / "folder")
    for target in (tmp_path / "folder", tmp_path / "folder" / "..", tmp_path):
        code, _, err = call(tmp_path / "folder", target, "--force")
        assert code == 2 and ("holds what is to be converted" in err)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nowhere",), "found nothing there; featlens downloads nothing"),
        (("https://host/edm-cifar10.pkl",), "found nothing there; featlens downloads nothing"),
        (("text.pkl",), "got a file of another kind"),
        (("empty",), "got another folder"),
        (("unet2d",), "holds a 'UNet2DModel' of diffusers, which computes other things than our networks "
         "and cannot become one; featlens.load and featlens extract read it directly"),
        (("foreign.safetensors",), "of another program"),
        (("run", "--to", "run"), "is a run already; to convert it choose diffusers"),
        (("run", "--sigma-init", "-1"), "sigma_init: expected a number above 0"),
        (("run", "--sigma-init", "nan"), "sigma_init: expected a number above 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_says_why_in_one_line(tmp_path, student, call, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pkl").write_text("no pickle")
    (tmp_path / "empty").mkdir()
    (tmp_path / "unet2d").mkdir()
    (tmp_path / "unet2d" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "foreign.safetensors")
    code, said, err = call(words[0], "out", *words[1:])
    assert code in (1, 2) and not said and err.count("\n") == 1
    assert expected in err
    assert not (tmp_path / "out").exists()


def test_kinds_are_told_by_content_whatever_the_name(tmp_path, pickled, student):
    pickled.rename(tmp_path / "x.safetensors")
    assert recognise(tmp_path / "x.safetensors") == "edm"
    snapshot = newest_snapshot(student)
    snapshot.rename(tmp_path / "x.pkl")
    assert recognise(tmp_path / "x.pkl") == "run"
    with pytest.raises(UsageError, match="form: unknown 'diffuser': did you mean 'diffusers'"):
        plan_conversion(tmp_path / "x.pkl", tmp_path / "out", "diffuser")


def edit(path, **changes):
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"network": {"channels": 8, "depht": 2}}, r"wrong settings \(configuration: unknown key 'depht'"),
        ({"network": {"kind": "vit"}}, "wrong settings .*unknown kind 'vit'"),
        ({"network": None}, "wrong settings"),
        ({"network": 3}, "wrong settings"),
        ({"sigma_data": "half"}, "wrong settings"),
        ({"sigma_init": [1]}, "wrong settings"),
        ({"sigma_data": -0.5}, "wrong settings .*sigma_data -0.5"),
        ({"kind": "../x"}, "wrong settings .*kind '../x'"),
        (
            {"network": {"channels": 65536, "channel_mult": [9, 9], "labels": 2}},
            "of another shape: network.map_",
        ),
        ({"network": {"channels": 8, "blocks": 60000}}, "its settings ask for more blocks than the"),
        ({"network": {"kind": "dit", "depth": 60000}}, "its settings ask for more blocks than the"),
        ({"network": {"channels": 8, "labels": 0}}, "2 left over: network.map_label"),
    ],
)
def test_a_folder_whose_settings_do_not_fit_is_refused_before_memory_is_taken(
    tmp_path, student, changes, expected
):
    plan_conversion(student, tmp_path / "folder").write()
    edit(tmp_path / "folder" / "unet" / "config.json", **changes)
    with pytest.raises(FeatlensError, match=expected):
        read_diffusers_folder(tmp_path / "folder")


def test_damaged_and_missing_weights_of_a_folder(tmp_path, student):
    plan_conversion(student, tmp_path / "folder").write()
    weights = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    blob = weights.read_bytes()
    weights.write_bytes(blob[:-1])
    with pytest.raises(FeatlensError, match="is damaged or no safetensors file"):
        read_diffusers_folder(tmp_path / "folder")
    weights.unlink()
    with pytest.raises(
        FeatlensError, match=r"has no diffusion_pytorch_model.safetensors; convert the run again"
    ):
        featlens.load(tmp_path / "folder")
    (tmp_path / "folder" / "unet" / "config.json").write_text("{")
    with pytest.raises(FeatlensError):
        featlens.load(tmp_path / "folder")
