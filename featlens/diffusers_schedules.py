"""What the configuration of a scheduler of diffusers says about the network's coordinates."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featlens.errors import UsageError

if TYPE_CHECKING:
    from featlens.parameterisation import Parameterisation

__all__ = ["Schedule", "read_schedule"]

_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_BETAS = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}


@dataclass(frozen=True)
class Schedule:
    """A schedule in words, and how to make it; torch is imported only then.

    Attributes
    ----------
    words, prediction
        As in :class:`featlens.diffusers_denoiser.DiffusersConfig`.
    parameterisation
        Makes the parameterisation, in units of the network.
    sigma_data
        Standard deviation of the data, in units of the denoiser.
    centred
        Whether the network knows images in [0, 1].
    """

    words: str
    prediction: str
    parameterisation: Callable[[], Parameterisation]
    sigma_data: float
    centred: bool


def read_schedule(
    file: Mapping[str, Any] | None, options: Mapping[str, Any], network: Mapping[str, Any]
) -> Schedule:
    """Schedule from the scheduler's file or None, options that override it, and the network's settings.

    Raises
    ------
    UsageError
        The scheduler is of an unknown kind, or an option does not go with it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        _require_type(name, value)
    embedding = str(network.get("time_embedding_type", "positional"))
    centred = bool(network.get("center_input_sample", False))
    kind = _kind(file, embedding)
    _require_fitting(kind, given)
    scale = 2 if centred else 1
    if "sigma_data" in given:
        given["sigma_data"] = given["sigma_data"] / scale
    config = {**(file or {}), **given}
    config = {name: value for name, value in config.items() if value is not None}
    for name in ("beta_start", "beta_end", "num_train_timesteps", "sigma_data", "sigma_min", "sigma_max"):
        if name in config:
            _require_type(name, config[name])
    told = kind == "edm" or "sigma_data" in given
    data = scale * float(config.get("sigma_data", 0.5)) if told else 0.5
    if kind == "betas":
        whole = int(network.get("num_train_timesteps") or 0) if embedding == "learned" else 0
        words, prediction, make = _betas(config, given, file is None, whole)
    else:
        words, prediction, make = {"ve": _ve, "edm": _edm, "flow": _flow}[kind](config, file is None)
    return Schedule(words, prediction, make, data, centred)


_Read = tuple[str, str, "Callable[[], Parameterisation]"]


def _kind(file: Mapping[str, Any] | None, embedding: str) -> str:
    if file is None:
        return "ve" if embedding == "fourier" else "betas"
    name = str(file.get("_class_name", ""))
    if name == "ScoreSdeVeScheduler":
        return "ve"
    if name in _EDM:
        return "edm"
    if name.startswith("FlowMatch") and not file.get("invert_sigmas"):
        return "flow"
    if any(key in file for key in ("beta_schedule", "beta_start", "trained_betas")):
        return "betas"
    raise UsageError(
        f"scheduler {name or 'without _class_name'}: expected one with betas, ScoreSdeVeScheduler, "
        f"{_EDM[0]} or FlowMatchEulerDiscreteScheduler; wrap the network in a denoiser of your own"
    )


def _require_fitting(kind: str, given: Mapping[str, Any]) -> None:
    fitting = {
        "betas": {*_BETAS, "prediction_type"},
        "ve": set(),
        "edm": {"prediction_type"},
        "flow": {"num_train_timesteps"},
    }[kind] | {"sigma_data"}
    wrong = [name for name in given if name not in fitting]
    if wrong:
        what = {"ve": "a score network (ScoreSdeVe)", "edm": "EDM", "flow": "flow matching"}.get(
            kind, "betas"
        )
        raise UsageError(
            f"option {wrong[0]!r} does not go with {what}, which the folder is; leave it out, or mend the "
            "scheduler's file"
        )


def _require_type(name: str, value: Any) -> None:
    if name in ("prediction_type", "beta_schedule"):
        if not isinstance(value, str):
            raise UsageError(f"{name}: expected a name, got {value!r}")
    elif name == "num_train_timesteps":
        if type(value) is not int or value < 1:
            raise UsageError(f"{name}: expected a number of steps such as 1000, got {value!r}")
    elif type(value) not in (int, float) or not 0 < value < math.inf:
        raise UsageError(f"{name}: expected a number above 0, got {value!r}")


def _betas(config: Mapping[str, Any], given: Mapping[str, Any], assumed: bool, whole: int) -> _Read:
    prediction = str(config.get("prediction_type", "epsilon"))
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    trained = None if set(given) & set(_BETAS) else config.get("trained_betas")
    values = {name: config.get(name, default) for name, default in _BETAS.items()}
    steps = len(trained) if isinstance(trained, list) else values["num_train_timesteps"]
    if whole and steps > whole:
        raise UsageError(
            f"the schedule has {steps} steps and the network's embedding {whole}; give "
            f"num_train_timesteps={whole}"
        )

    def make() -> Parameterisation:
        from featlens.parameterisation import Betas, make_betas

        betas = trained
        if betas is None:
            start, end = float(values["beta_start"]), float(values["beta_end"])
            betas = make_betas(str(values["beta_schedule"]), start, end, steps)
        return Betas(betas, prediction, bool(whole), zero_snr)

    if trained is None:
        words = "{num_train_timesteps} betas, {beta_schedule} from {beta_start:g} to {beta_end:g}".format(
            **values
        )
    else:
        digest = hashlib.sha256(json.dumps(trained).encode()).hexdigest()[:8]
        words = f"{steps} betas of its own ({digest})"
    words += ", rescaled to no signal at the end" if zero_snr else ""
    return words + (", assumed as there is no scheduler" if assumed else ""), prediction, make


def _range(config: Mapping[str, Any], low: float, high: float) -> tuple[float, float]:
    return float(config.get("sigma_min", low)), float(config.get("sigma_max", high))


def _ve(config: Mapping[str, Any], assumed: bool) -> _Read:
    levels = (0.0, math.inf) if assumed else _range(config, 0.01, 1348.0)

    def make() -> Parameterisation:
        from featlens.parameterisation import ScoreSdeVe

        return ScoreSdeVe(levels)

    words = "assumed as there is no scheduler" if assumed else "sigma from {:g} to {:g}".format(*levels)
    return f"score of x, {words}", "score", make


def _edm(config: Mapping[str, Any], assumed: bool) -> _Read:
    levels, data = _range(config, 0.002, 80.0), float(config.get("sigma_data", 0.5))
    prediction = str(config.get("prediction_type", "epsilon"))

    def make() -> Parameterisation:
        from featlens.parameterisation import EDM

        return EDM(data, levels, prediction)

    return "EDM, sigma from {:g} to {:g}, sigma_data {:g}".format(*levels, data), prediction, make


def _flow(config: Mapping[str, Any], assumed: bool) -> _Read:
    steps = int(config.get("num_train_timesteps", 1000))

    def make() -> Parameterisation:
        from featlens.parameterisation import FlowMatch

        return FlowMatch(steps)

    return f"flow matching, {steps} steps", "velocity", make
