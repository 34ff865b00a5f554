"""Schedulers' files and options, read without torch and without diffusers."""

from __future__ import annotations

import pytest

from featlens.diffusers_schedules import read_schedule
from featlens.errors import UsageError

FILES = {
    "none": None,
    "betas": {"_class_name": "DDIMScheduler", "beta_start": 0.001, "prediction_type": "sample"},
    "trained": {"_class_name": "DDPMScheduler", "trained_betas": [0.1, 0.2], "beta_schedule": "linear"},
    "ve": {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.1, "sigma_max": 50},
    "edm": {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.7},
    "flow": {"_class_name": "FlowMatchHeunDiscreteScheduler", "num_train_timesteps": 100},
}


@pytest.mark.parametrize(
    ("file", "options", "network", "words", "prediction", "levels", "data"),
    [
        (
            "none",
            {},
            {},
            "1000 betas, linear from 0.0001 to 0.02, assumed as there is no scheduler",
            "epsilon",
            (0.01, 157.407),
            0.5,
        ),
        ("betas", {}, {}, "1000 betas, linear from 0.001 to 0.02", "sample", (0.03164, 197.44), 0.5),
        ("trained", {}, {}, "2 betas of its own (", "epsilon", (1 / 3, 0.62361), 0.5),
        (
            "trained",
            {"num_train_timesteps": 1, "beta_start": 0.5},
            {},
            "1 betas, linear from 0.5 to 0.02",
            "epsilon",
            (1, 1),
            0.5,
        ),
        (
            "none",
            {},
            {"time_embedding_type": "fourier"},
            "score of x, assumed as there is no scheduler",
            "score",
            (0, float("inf")),
            0.5,
        ),
        ("ve", {"sigma_data": 2}, {}, "score of x, sigma from 0.1 to 50", "score", (0.1, 50), 2),
        ("edm", {}, {}, "EDM, sigma from 0.002 to 80, sigma_data 0.7", "epsilon", (0.002, 80), 0.7),
        (
            "edm",
            {"sigma_data": 0.6, "prediction_type": "v_prediction"},
            {"center_input_sample": True},
            "EDM, sigma from 0.002 to 80, sigma_data 0.3",
            "v_prediction",
            (0.002, 80),
            0.6,
        ),
        ("flow", {}, {}, "flow matching, 100 steps", "velocity", (0, float("inf")), 0.5),
        (
            "none",
            {"sigma_data": 0.6},
            {"center_input_sample": True},
            "1000 betas",
            "epsilon",
            (0.01, 157.4),
            0.6,
        ),
        ("none", {}, {"center_input_sample": True}, "1000 betas", "epsilon", (0.01, 157.4), 0.5),
    ],
)
def test_what_is_understood(file, options, network, words, prediction, levels, data):
    schedule = read_schedule(FILES[file], options, network)
    assert schedule.words.startswith(words)
    assert (schedule.prediction, schedule.sigma_data) == (prediction, data)
    assert schedule.parameterisation().sigma_range == pytest.approx(levels, rel=1e-3)


def test_options_that_are_none_change_nothing():
    one = read_schedule(FILES["betas"], dict.fromkeys(("beta_start", "prediction_type", "sigma_data")), {})
    assert (one.words, one.prediction) == ("1000 betas, linear from 0.001 to 0.02", "sample")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("none", {"beta_end": "high"}, "beta_end: expected a number above 0, got 'high'"),
        ("none", {"beta_end": True}, "beta_end: expected a number above 0, got True"),
        ("none", {"sigma_data": -1.0}, "sigma_data: expected a number above 0, got -1.0"),
        ("none", {"num_train_timesteps": 0}, "num_train_timesteps: expected a number of steps such as 1000"),
        ("none", {"num_train_timesteps": 9.5}, "num_train_timesteps: expected a number of steps"),
        ("none", {"prediction_type": 3}, "prediction_type: expected a name, got 3"),
        ("ve", {"prediction_type": "epsilon"}, r"'prediction_type' does not go with a score network"),
        ("edm", {"beta_start": 0.1}, "'beta_start' does not go with EDM"),
        ("edm", {"prediction_type": "sample"}, "prediction_type 'sample' does not go with EDM; choose"),
        ("flow", {"prediction_type": "epsilon"}, "'prediction_type' does not go with flow matching"),
    ],
)
def test_options_that_do_not_fit_are_refused(file, options, message):
    with pytest.raises(UsageError, match=message):
        read_schedule(FILES[file], options, {}).parameterisation()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            {"_class_name": "UnCLIPScheduler"},
            "scheduler UnCLIPScheduler: expected one with betas, ScoreSdeVe",
        ),
        ({}, "scheduler without _class_name: expected one with betas"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
            "scheduler FlowMatchEuler",
        ),
        ({"beta_start": "x"}, "beta_start: expected a number above 0, got 'x'"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": "x"}, "sigma_max: expected a number above 0"),
        ({"beta_start": 0.1, "prediction_type": "flow_prediction"}, "unknown prediction_type 'flow_pred"),
    ],
)
def test_files_that_cannot_be_understood_are_refused(file, message):
    with pytest.raises(UsageError, match=message):
        read_schedule(file, {}, {}).parameterisation()


def test_an_embedding_of_too_few_steps_is_refused():
    network = {"time_embedding_type": "learned", "num_train_timesteps": 500}
    with pytest.raises(
        UsageError, match="has 1000 steps and the network's embedding 500; give num_train_times"
    ):
        read_schedule(None, {}, network)
    assert read_schedule(None, {"num_train_timesteps": 500}, network).parameterisation().whole
