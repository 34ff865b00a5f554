"""What is asked of an extraction, checked before anything runs, and how the file's manifest tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featlens.denoiser import Denoiser, weights_digest
from featlens.errors import UsageError, choices_hint
from featlens.reduce import Reducer, fingerprint, resolve
from featlens.site import Selection
from featlens.site import sites as find_sites

if TYPE_CHECKING:
    from featlens.samples import SampleSet

__all__ = ["DTYPES", "INPUTS", "LABELS", "PRECISIONS", "Request"]

INPUTS = ("noised", "latents")
LABELS = ("given", "none", "both")
DTYPES = ("float32", "float16")
PRECISIONS = ("bfloat16", "float16")


@dataclass(frozen=True)
class Request:
    """Settings of an extraction, as :func:`featlens.extract` takes them; wrong ones are refused here."""

    sigmas: tuple[float, ...]
    sites: Selection
    reducer: Reducer
    reducer_name: str
    batch: int = 128
    inputs: str = "noised"
    labels: str = "given"
    halves: tuple[str, ...] = ()
    dtype: str = "float32"
    precision: str | None = None

    @classmethod
    def checked(
        cls,
        model: Denoiser,
        samples: SampleSet,
        sigmas: Sequence[float] | None,
        sites: Selection | None,
        reduce: str | Reducer,
        batch: int,
        halves: Sequence[str],
        **choices: Any,
    ) -> Request:
        """Request that this model and these samples can serve."""
        if batch < 1:
            raise UsageError(f"extract: a batch holds at least one image, got {batch}")
        if samples.shape != tuple(model.sample_shape):
            raise UsageError(
                f"extract: the model takes samples of shape {tuple(model.sample_shape)}, "
                f"{samples.name!r} has {samples.shape}"
            )
        for name, known in (("inputs", INPUTS), ("labels", LABELS), ("dtype", DTYPES)):
            if choices[name] not in known:
                raise UsageError(
                    f"extract: unknown {name} {choices[name]!r}: {choices_hint(str(choices[name]), known)}"
                )
        precision = choices["precision"]
        if precision not in (None, *PRECISIONS):
            raise UsageError(
                f"extract: unknown precision {precision!r}: {choices_hint(str(precision), PRECISIONS)}"
            )
        named = _checked_halves(halves)
        if choices["labels"] != "given" and not model.num_labels:
            raise UsageError(
                f"extract: labels={choices['labels']!r} needs a conditional model, this one has no classes"
            )
        if choices["labels"] != "none":
            _require_labels(model, samples)
        reducer_name, reducer = resolve(reduce)
        levels = _checked_sigmas(_default_sigmas(model, choices["inputs"]) if sigmas is None else sigmas)
        chosen = _default_sites(model) if sites is None else sites
        return cls(tuple(levels), chosen, reducer, reducer_name, batch, halves=named, **choices)

    def manifest(self, model: Denoiser, samples: SampleSet, name: str) -> dict[str, Any]:
        """Provenance of the features; what is not the default is added, so that old files are continued."""
        told = {
            "model": name,
            "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
            "network": _described(model),
            "sigma_data": float(model.sigma_data),
            "weights_digest": weights_digest(model.network),
            "sites": _told_sites(self.sites),
            "reducer": self.reducer_name,
            "sample_set": samples.name,
            "sample_digest": samples.digest,
            "noise_seed": samples.seed,
            "sigmas": list(self.sigmas),
            "dtype": self.dtype,
        }
        unusual = {
            "inputs": (self.inputs, "noised"),
            "labels": (self.labels, "given"),
            "halves": (list(self.halves), []),
            "precision": (self.precision, None),
        }
        return told | {key: value for key, (value, default) in unusual.items() if value != default}


def _described(model: Denoiser) -> str:
    """Configuration of the model, else of its network, else the network's class."""
    config = getattr(model, "config", None)
    if config is None:
        config = getattr(model.network, "config", None)
    return repr(type(model.network).__qualname__ if config is None else config)


def _checked_sigmas(sigmas: Sequence[float]) -> list[float]:
    try:
        levels = [float(sigma) for sigma in np.atleast_1d(np.asarray(sigmas, dtype=np.float64))]
    except (TypeError, ValueError):
        raise UsageError(f"extract: sigmas must be numbers above 0, got {sigmas!r}") from None
    if not levels or not all(np.isfinite(levels)) or min(levels) <= 0:
        raise UsageError(f"extract: sigmas must be one or more numbers above 0, got {levels}")
    if min(levels) < 1e-37 or max(levels) > 1e37:
        raise UsageError(f"extract: the model gets sigmas in float32, which does not hold all of {levels}")
    if len(set(levels)) != len(levels):
        raise UsageError(f"extract: a sigma is given twice in {levels}")
    return levels


def _default_sites(model: Denoiser) -> str:
    return "*.*" if any(site.name.count(".") == 1 for site in find_sites(model.network)) else "**"


def _default_sigmas(model: Denoiser, inputs: str) -> list[float]:
    start = getattr(model, "sigma_init", None)
    if inputs == "latents" and start is not None:
        return [float(start)]
    hint = ", such as the generator's sigma_init, which this model does not tell"
    raise UsageError("extract: no sigmas; give one or more" + (hint if inputs == "latents" else ""))


def _checked_halves(halves: Sequence[str]) -> tuple[str, ...]:
    named = tuple(part.strip() for part in halves.split(",")) if isinstance(halves, str) else tuple(halves)
    wrong = [half for half in named if not half.isidentifier()]
    if named and (len(named) < 2 or len(set(named)) < len(named) or wrong):
        raise UsageError(
            "extract: halves are two or more names in the order of the model's batch, such as "
            f"uncond,cond; got {list(named)}"
        )
    return named


def _require_labels(model: Denoiser, samples: SampleSet) -> None:
    if not model.num_labels:
        return
    if samples.labels is None:
        raise UsageError(
            f"extract: the model is conditional ({model.num_labels} classes), but {samples.name!r} has no "
            "labels; give labels, or extract with labels='none'"
        )
    lowest, highest = int(samples.labels.min()), int(samples.labels.max())
    if lowest < 0 or highest >= model.num_labels:
        raise UsageError(
            f"extract: the model knows labels 0 to {model.num_labels - 1}, {samples.name!r} has "
            f"{lowest} to {highest}"
        )


def _told_sites(sites: Selection) -> list[str]:
    chosen = [sites] if isinstance(sites, (str, int)) or callable(sites) else list(sites)
    return [_told_site(one) for one in chosen]


def _told_site(one: Any) -> str:
    if isinstance(one, str):
        return one
    if isinstance(one, int):
        return f"index:{one}"
    return f"type:{one.__name__}" if isinstance(one, type) else fingerprint(one)
