"""Presets and settings: the table, files on top of it, and impossible values."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from featlens.errors import FeatlensError, UsageError
from featlens_trainers import DIVERGENCES, DistillConfig, InitSpec, StudyConfig, TeacherConfig, resolve_study
from featlens_trainers.config import from_mapping, to_mapping
from featlens_trainers.presets import PRESETS
from featlens_trainers.settings import (
    RATIO_INITIALISATIONS,
    STUDY_INITIALISATIONS,
    ClassifierConfig,
    EvaluationConfig,
    FeatureConfig,
    RegressionConfig,
)
from featlens_trainers.study import to_toml


def file(folder: Path, text: str) -> str:
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- the table ----------------------------------------------------------------------------------------------


def test_the_demo_holds_the_initialisations_that_the_question_needs() -> None:
    config = resolve_study("digits")
    assert config == PRESETS["digits"]
    assert {"teacher", "random", "single_sigma", "features_only", "prior_only"} <= set(config.inits)
    assert config.distill.sigma_init == 2.5


def test_the_controls_see_as_many_images_as_the_teacher() -> None:
    config = resolve_study("digits")
    assert config.regression.images == config.teacher.images


def test_full_crosses_everything_with_several_seeds() -> None:
    config = resolve_study("digits", full=True)
    assert set(config.inits) == set(STUDY_INITIALISATIONS)
    assert set(config.ratio_inits) == set(RATIO_INITIALISATIONS)
    assert len(config.seeds) >= 3
    assert dataclasses.replace(
        config,
        inits=PRESETS["digits"].inits,
        ratio_inits=PRESETS["digits"].ratio_inits,
        seeds=PRESETS["digits"].seeds,
        distill=PRESETS["digits"].distill,
    ) == resolve_study("digits")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_own_file(tmp_path: Path, name: str) -> None:
    config = resolve_study(name)
    assert resolve_study(file(tmp_path, to_toml(config))) == config
    assert from_mapping(StudyConfig, to_mapping(config)) == config


# --- files --------------------------------------------------------------------------------------------------


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    config = resolve_study(file(tmp_path, "seeds = [3, 4]\n[network]\nchannels = 8\n[teacher]\nsigma = 1\n"))
    base = PRESETS["digits"]
    assert config == dataclasses.replace(
        base,
        seeds=(3, 4),
        network=dataclasses.replace(base.network, channels=8),
        teacher=dataclasses.replace(base.teacher, sigma=1.0),
    )


def test_overrides_come_last(tmp_path: Path) -> None:
    path = file(tmp_path, "seeds = [3]\n")
    assert resolve_study(path, full=True, overrides={"seeds": [9]}).seeds == (9,)
    assert resolve_study(path, full=True).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes = [1]", "unknown key 'sedes': did you mean 'seeds'"),
        ("[distill]\nimgaes = 5", "unknown key 'distill.imgaes': did you mean 'images'"),
        ('preset = "digit"', "unknown preset 'digit': did you mean 'digits'"),
        ("seeds = [", "is not valid TOML"),
        ("seeds = 3", "seeds must be a list"),
        ("[network]\nresolution = 16", "resolution 16"),
        ("[network]\nin_channels = 3", "in_channels 3"),
        ("[network]\nchannels = 9", "channels must be a multiple of 4"),
        ('inits = ["techer"]', "did you mean 'teacher'"),
        ('ratio_inits = ["randm"]', "did you mean 'random'"),
        ('divergences = ["reverse_lk"]', "did you mean 'reverse_kl'"),
        ("seeds = []", "need at least one entry each"),
        ("seeds = [1, 1]", "seeds names an entry twice"),
        ('inits = ["random", "random"]', "inits names an entry twice"),
        ("[teacher]\nimages = 0", "images must be above 0, got 0"),
        ("[evaluation]\nimages = 1", "evaluation.images must be at least 2, got 1"),
        ("[features]\nsites = []", "sites must be one or more patterns"),
        ('[features]\nreduce = "gpa"', "did you mean 'gap'"),
        ("[features]\nsigmas = [inf]", "sigmas must be one or more numbers above 0"),
        ("[features]\nsigmas = []", "sigmas must be one or more numbers above 0"),
        ("[features]\nsigmas = [0.5, -1.0]", "sigmas must be one or more numbers above 0"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_study(file(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown preset 'digist': did you mean 'digits'"):
        resolve_study("digist")
    with pytest.raises(UsageError, match=r"no configuration file .*nothing\.toml"):
        resolve_study(str(tmp_path / "nothing.toml"))
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(FeatlensError, match=r"folder\.toml: this is a folder"):
        resolve_study(str(tmp_path / "folder.toml"))
    (tmp_path / "latin.toml").write_bytes(b'preset = "\xe4"')
    with pytest.raises(UsageError, match="not valid TOML"):
        resolve_study(str(tmp_path / "latin.toml"))


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (TeacherConfig, ("images", "batch", "lr", "p_std", "sigma", "ema_half_life", "ema_ramp")),
        (RegressionConfig, ("images", "batch", "lr", "ema_half_life", "ema_ramp")),
        (
            DistillConfig,
            ("images", "batch", "lr", "ratio_lr", "sigma_init", "ema_half_life", "ema_ramp"),
        ),
        (ClassifierConfig, ("images", "batch", "lr", "features")),
        (EvaluationConfig, ("times", "heun_steps", "grid")),
        (FeatureConfig, ("permutations", "probe_splits")),
    ],
)
def test_numbers_that_must_be_positive_are_checked(kind: type, names: tuple[str, ...]) -> None:
    for name in names:
        for value in (0, -1, float("nan")):
            with pytest.raises(UsageError, match=f"{name} must be above 0"):
                kind(**{name: value})


def test_unknown_divergences_get_the_nearest_match() -> None:
    with pytest.raises(UsageError, match="did you mean 'reverse_kl'"):
        DistillConfig(divergence="revrse_kl")
    assert {DistillConfig(divergence=name).divergence for name in DIVERGENCES} == set(DIVERGENCES)


def test_every_initialisation_can_be_specified_with_every_start_of_the_ratio_network() -> None:
    specs = {InitSpec(student, ratio) for student in STUDY_INITIALISATIONS for ratio in RATIO_INITIALISATIONS}
    assert len(specs) == 12


def test_full_doubles_the_images_of_any_study() -> None:
    """What --help says; a study of shapes was cut to the length of the digits' once."""
    for name in ("digits", "shapes32"):
        assert resolve_study(name, full=True).distill.images == 2 * resolve_study(name).distill.images
    assert resolve_study("digits", full=True).distill.images == 38_400
