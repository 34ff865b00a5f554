"""Models by location from folders as diffusers writes them; nothing is downloaded, no pickle is read."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.diffusers_schedules import Schedule, read_schedule
from featlens.errors import FeatlensError, UsageError, choices_hint

if TYPE_CHECKING:
    from torch import nn

    from featlens.diffusers_denoiser import DiffusersConfig, DiffusersDenoiser

__all__ = ["load_diffusers"]

NETWORKS = ("UNet2DModel", "DiTTransformer2DModel")
_DTYPES = ("float32", "float16", "bfloat16")
_WEIGHTS = "diffusion_pytorch_model"


def load_diffusers(
    location: str,
    device: str,
    *,
    prediction_type: str | None = None,
    beta_schedule: str | None = None,
    beta_start: float | None = None,
    beta_end: float | None = None,
    num_train_timesteps: int | None = None,
    sigma_data: float | None = None,
    sample_size: int | list[int] | None = None,
    null_label: int | None = None,
    variant: str | None = None,
    dtype: str = "float32",
) -> DiffusersDenoiser | None:
    """Denoiser of a folder of a network or pipeline, or None if the location is no such folder.

    Neither torch nor diffusers is imported before the folder is recognised.

    Parameters
    ----------
    location, device
        Folder; where the weights go.
    prediction_type, beta_schedule, beta_start, beta_end, num_train_timesteps
        Instead of what the scheduler's file says, or of DDPM's values.
    sigma_data
        Standard deviation of the data, 0.5 unless an EDM scheduler says otherwise.
    sample_size
        Height and width, if ``config.json`` has none.
    null_label
        Class of a conditional ``UNet2DModel`` that stands for no label.
    variant
        Such as ``fp16``, part of the name of the file of weights.
    dtype
        Of the weights in memory.

    Raises
    ------
    UsageError
        The network or the scheduler is of another kind, or an option is wrong.
    FeatlensError
        The weights are missing, pickled, or not of this network; diffusers is not installed.
    """
    root = Path(location)
    found = _network_folder(root)
    if found is None:
        return None
    folder, config = found
    kind = str(config["_class_name"])
    if kind not in NETWORKS:
        raise UsageError(
            f"{location}: {kind} is not among the networks that featlens loads ({', '.join(NETWORKS)}); wrap "
            "it in a denoiser of your own and give python:module:function"
        )
    if dtype not in _DTYPES:
        raise UsageError(f"option dtype: unknown {dtype!r}: {choices_hint(str(dtype), _DTYPES)}")
    schedule = read_schedule(
        _scheduler_config(root, folder),
        {
            "prediction_type": prediction_type,
            "beta_schedule": beta_schedule,
            "beta_start": beta_start,
            "beta_end": beta_end,
            "num_train_timesteps": num_train_timesteps,
            "sigma_data": sigma_data,
        },
        config,
    )
    shape = _sample_shape(location, config, sample_size)
    num_labels, null = _labels(location, kind, config, null_label)
    # Before the weights are read, as it may be refused.
    parameterisation = schedule.parameterisation()
    _require_weights(folder, variant)
    network = _read(kind, folder, variant, dtype).to(device)

    from featlens.diffusers_denoiser import DiffusersDenoiser

    understood = _understood(config, schedule, null)
    model = DiffusersDenoiser(network, parameterisation, shape, understood, num_labels, schedule.sigma_data)
    return model.eval()


def _understood(config: dict[str, Any], schedule: Schedule, null_label: int | None) -> DiffusersConfig:
    from featlens.diffusers_denoiser import DiffusersConfig

    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    text = json.dumps(kept, sort_keys=True)
    return DiffusersConfig(
        network=str(config["_class_name"]),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        schedule=schedule.words,
        prediction=schedule.prediction,
        centred=schedule.centred,
        null_label=null_label,
    )


def _network_folder(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """Folder of the network with its settings, None if there is nothing of diffusers."""
    if (root / "config.json").is_file():
        config = _present(_settings(root / "config.json"))
        return (root, config) if isinstance(config.get("_class_name"), str) else None
    if not (root / "model_index.json").is_file():
        return None
    for name in ("unet", "transformer"):
        path = root / name / "config.json"
        if path.is_file():
            config = _present(_settings(path))
            if isinstance(config.get("_class_name"), str):
                return path.parent, config
            raise UsageError(f"{path} names no class: expected _class_name, as diffusers writes it")
    raise UsageError(
        f"{root} is a pipeline without unet/config.json and transformer/config.json; download all of it, or "
        "wrap its network in a denoiser of your own"
    )


def _present(config: dict[str, Any]) -> dict[str, Any]:
    """Settings under the present name of their class: released DiTs bear that of a class since split."""
    if config.get("_class_name") == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        return {**config, "_class_name": "DiTTransformer2DModel"}
    return config


def _scheduler_config(root: Path, folder: Path) -> dict[str, Any] | None:
    """Settings of the scheduler: in ``scheduler/``, beside the network or in the pipeline's folder."""
    places = [root, folder]
    if (folder.parent / "model_index.json").is_file():
        places.append(folder.parent)
    for place in places:
        for path in (place / "scheduler" / "scheduler_config.json", place / "scheduler_config.json"):
            if path.is_file():
                return _settings(path)
    return None


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}); download or write it again") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected a JSON object, got a {type(found).__name__}; write it again")
    return found


def _sample_shape(location: str, config: dict[str, Any], sample_size: Any) -> tuple[int, int, int]:
    there = config.get("sample_size")
    if config["_class_name"] == "DiTTransformer2DModel":
        there = config.get("sample_size", 32)
    if there is None and sample_size is None:
        raise UsageError(f"{location}: config.json has no sample_size; give the option sample_size=32")
    if there is not None and sample_size is not None and _pair(there) != _pair(sample_size):
        raise UsageError(
            f"{location}: option sample_size is {sample_size}, config.json says {there}; leave out the option"
        )
    height, width = _pair(sample_size if there is None else there)
    channels = int(config.get("in_channels", 4 if config["_class_name"] == "DiTTransformer2DModel" else 3))
    out = config.get("out_channels")
    if out is not None and int(out) < channels:
        raise UsageError(
            f"{location}: the network takes {channels} channels and gives {out}; a denoiser gives an image "
            "like its input; wrap it in a denoiser of your own"
        )
    return channels, height, width


def _pair(size: Any) -> tuple[int, int]:
    pair = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(pair, list | tuple)
        or len(pair) != 2
        or not all(type(n) is int and n > 0 for n in pair)
    ):
        raise UsageError(
            f"sample_size: expected a number of pixels such as 32, or [height, width], got {size!r}"
        )
    return pair[0], pair[1]


def _labels(location: str, kind: str, config: dict[str, Any], null_label: Any) -> tuple[int, int | None]:
    """Number of classes, and the class that stands for none."""
    if kind == "DiTTransformer2DModel":
        classes = int(config.get("num_embeds_ada_norm", 1000))
        if null_label not in (None, classes):
            raise UsageError(f"{location}: option null_label: {kind} has its own, {classes}; leave it out")
        return classes, classes
    if config.get("class_embed_type") is not None:
        raise UsageError(
            f"{location}: class_embed_type {config['class_embed_type']!r} is not made of class numbers; wrap "
            "the network in a denoiser of your own"
        )
    classes = int(config.get("num_class_embeds") or 0)
    if null_label is None:
        return classes, None
    if not classes:
        raise UsageError(f"{location}: option null_label: the network is unconditional; leave it out")
    if type(null_label) is not int or not 0 <= null_label < classes:
        raise UsageError(f"{location}: option null_label: expected 0 to {classes - 1}, got {null_label!r}")
    # The last class is no label that samples could have.
    return (classes - 1 if null_label == classes - 1 else classes), null_label


def _require_weights(folder: Path, variant: str | None) -> None:
    middle = f".{variant}" if variant else ""
    wanted = f"{_WEIGHTS}{middle}.safetensors"
    if (folder / wanted).is_file() or (folder / f"{_WEIGHTS}.safetensors.index{middle}.json").is_file():
        return
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    variants = [
        name[len(_WEIGHTS) + 1 : -len(".safetensors")]
        for name in names
        if name.startswith(f"{_WEIGHTS}.") and name.endswith(".safetensors")
    ]
    variants = [name for name in variants if name and "." not in name]
    if variants or f"{_WEIGHTS}.safetensors" in names:
        there = " or ".join(f"variant={name}" for name in variants) or "no variant"
        raise UsageError(f"{folder} has no {wanted}: it has other weights; give {there}")
    pickles = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
    if pickles:
        kind = _settings(folder / "config.json")["_class_name"]
        raise FeatlensError(
            f"{folder} has only pickled weights ({pickles[0]}), and reading a pickle can run code; if you "
            f"trust it, write it as safetensors once: {kind}.from_pretrained({str(folder)!r}, "
            f"use_safetensors=False).save_pretrained({str(folder)!r})"
        )
    raise FeatlensError(f"{folder} has no weights: expected {wanted}; download all files of the model")


def _read(kind: str, folder: Path, variant: str | None, dtype: str) -> nn.Module:
    """Network with its weights, in the random state of before."""
    import torch

    with warnings.catch_warnings():
        # What diffusers says about its own future is nothing that a user of featlens can act on.
        warnings.simplefilter("ignore")
        try:
            import diffusers
            from diffusers.utils import logging
        except ImportError as error:
            raise FeatlensError(
                f"{folder} is a model of diffusers, which cannot be imported ({error}); "
                "pip install 'featlens[diffusers]'"
            ) from error
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            with torch.random.fork_rng(devices=[]):
                network, info = getattr(diffusers, kind).from_pretrained(
                    folder,
                    variant=variant,
                    torch_dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    local_files_only=True,
                    low_cpu_mem_usage=False,
                    output_loading_info=True,
                )
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise FeatlensError(
                f"{folder}: diffusers cannot load it ({type(error).__name__}: {reason}); are config.json and "
                "the weights complete and of one model?"
            ) from error
        finally:
            logging.set_verbosity(verbosity)
    for key, what in (("missing_keys", "lack"), ("unexpected_keys", "have unknown")):
        missing = sorted(info.get(key) or ())
        if missing:
            raise FeatlensError(
                f"{folder}: the weights {what} {missing[0]!r} ({len(missing)} such in all); config.json and "
                "the weights are not of one model: download both again"
            )
    # Where the folder lies is no property of the model.
    network.register_to_config(_name_or_path="")
    module: nn.Module = network
    return module
