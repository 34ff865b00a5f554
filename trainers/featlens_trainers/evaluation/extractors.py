"""Feature functions: the study's classifier, a TorchScript file, or a function of the user's."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from featlens.denoiser import weights_digest
from featlens.errors import FeatlensError, UsageError, choices_hint
from featlens.options import split_options
from featlens.python_models import PythonFunction, python_function
from featlens_trainers.classifier import Classifier, load_classifier

__all__ = ["Extractor", "Inputs", "classifier_extractor", "load_extractor"]

RANGES = ("[-1,1]", "[0,1]", "[0,255]", "uint8")


@dataclass(frozen=True)
class Inputs:
    """How images (B, C, H, W) float32 in [-1, 1] are handed to a feature function.

    Attributes
    ----------
    range
        ``"[-1,1]"`` as they are; ``"[0,1]"`` and ``"[0,255]"`` float32, clipped; ``"uint8"`` 0 to 255,
        clipped and rounded.
    size
        Side in pixels to which images are resized (bilinear, with antialiasing), None for none.
    rgb
        Whether a single channel is repeated three times.
    """

    range: str = "[-1,1]"
    size: int | None = None
    rgb: bool = False

    def __post_init__(self) -> None:
        if self.range not in RANGES:
            raise UsageError(f"extractor: unknown range {self.range!r}: {choices_hint(self.range, RANGES)}")
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int)):
            raise UsageError(f"extractor: size must be a whole number of pixels, got {self.size!r}")
        if self.size is not None and self.size < 1:
            raise UsageError(f"extractor: size must be at least 1 pixel, got {self.size}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Inputs:
        """From what follows a location, such as ``range=uint8,size=299,rgb=yes``."""
        known = ("range", "size", "rgb")
        for name in options:
            if name not in known:
                raise UsageError(f"extractor: no option {name!r}: {choices_hint(name, known)}")
        span = options.get("range", "[-1,1]")
        if isinstance(span, list):
            # Brackets were read as a list of numbers.
            span = f"[{','.join(map(str, span))}]"
        return cls(str(span), options.get("size"), _truth("rgb", options.get("rgb", False)))

    def __call__(self, images: Tensor) -> Tensor:
        """What the feature function gets."""
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            images = functional.interpolate(
                images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False
            )
        if self.rgb and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.range == "[-1,1]":
            return images
        unit = ((images + 1) / 2).clamp(0, 1)
        if self.range == "[0,1]":
            return unit
        return unit * 255 if self.range == "[0,255]" else (unit * 255).round().to(torch.uint8)


def _truth(name: str, value: object) -> bool:
    words = {"yes": True, "true": True, "no": False, "false": False}
    if isinstance(value, bool):
        return value
    if str(value) not in words:
        raise UsageError(f"extractor: {name} is yes or no, got {value!r}")
    return words[str(value)]


@dataclass(frozen=True)
class Extractor:
    """A feature function with its identity.

    Attributes
    ----------
    name
        What the user wrote, or ``"study classifier"``.
    digest
        16 hex digits over the weights or file and over the input options: equal digests, equal features.
    function
        Images as the inputs say -> (B, d), or (B, d, 1, 1).
    inputs
        How images are handed over.
    device
        Where the function computes.
    shape
        (C, H, W) that the function takes, None for any.
    """

    name: str
    digest: str
    function: Callable[[Tensor], Any]
    inputs: Inputs
    device: str = "cpu"
    shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> NDArray[np.float64]:
        """Features (B, d) of images (B, C, H, W) in [-1, 1].

        Raises
        ------
        FeatlensError
            The function failed, or returned something else than one row of numbers an image.
        """
        given = self.inputs(images.to(self.device))
        try:
            out = self.function(given)
        except FeatlensError:
            raise
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            # The last line of a TorchScript error says what went wrong; the others are its program.
            said = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
            raise FeatlensError(
                f"extractor {self.name} failed on images {tuple(given.shape)} {_dtype(given)}: "
                f"{said[:200]}; see the options range, size and rgb"
            ) from error
        return self._rows(out, len(images), given)

    def _rows(self, out: Any, count: int, given: Tensor) -> NDArray[np.float64]:
        if isinstance(out, np.ndarray):
            out = torch.from_numpy(out)
        if isinstance(out, Tensor) and out.ndim > 2 and out[0, 0].numel() == 1:
            out = out.reshape(len(out), -1)
        if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != count:
            got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
            raise FeatlensError(
                f"extractor {self.name}: expected features ({count}, d) for images {tuple(given.shape)}, "
                f"got {got}; return one row of numbers an image"
            )
        return np.asarray(out.detach().cpu().double().numpy())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def classifier_extractor(study: Path, device: str = "cpu", name: str = "study classifier") -> Extractor:
    """The classifier of a study's folder."""
    classifier, _ = load_classifier(study, device)
    return of_classifier(classifier, device, name)


def of_classifier(classifier: Classifier, device: str, name: str = "study classifier") -> Extractor:
    """A classifier as an extractor of its scaled features."""
    shape = classifier.shape
    size = (shape["channels"], shape["resolution"], shape["resolution"])
    return Extractor(name, weights_digest(classifier), classifier.features, Inputs(), device, size)


def load_extractor(location: str, device: str = "cpu") -> Extractor:
    """Feature function behind a location.

    Parameters
    ----------
    location
        ``FILE.ts`` or ``FILE.pt`` (TorchScript), ``python:module:function`` or ``python:./file.py:function``
        (images -> features), or the folder of a study, whose classifier is meant. Options follow the first
        three, as in ``inception.ts:range=uint8,size=299,rgb=yes``; for Python also ``build=yes``, where the
        function is called once, without arguments, and returns the feature function.
    device
        Where it computes.

    Raises
    ------
    UsageError
        No such file, function or option.
    FeatlensError
        The file is no TorchScript, or the user's code failed.
    """
    text, options = (location, {}) if os.path.exists(location) else split_options(location)  # noqa: PTH110
    if text.startswith("python:"):
        return _python(text, dict(options), device)
    inputs = Inputs.from_options(options)
    path = Path(text)
    if path.is_dir():
        study = path.resolve().parent if (path / "classifier.safetensors").is_file() else path
        if options:
            raise UsageError(f"extractor {text}: a study's classifier takes no options; leave them out")
        return classifier_extractor(study, device)
    if not path.is_file():
        raise UsageError(
            f"no extractor at {text!r}: expected a TorchScript file, python:module:function or the folder of "
            "a study"
        )
    return _torchscript(path, inputs, device)


def _identity(inputs: Inputs, *parts: str) -> str:
    return hashlib.sha256("|".join([*parts, repr(inputs)]).encode()).hexdigest()[:16]


def _torchscript(path: Path, inputs: Inputs, device: str) -> Extractor:
    if not zipfile.is_zipfile(path) or not _holds_code(path):
        raise FeatlensError(
            f"{path} is no TorchScript file; write one with torch.jit.trace(model, images).save('x.ts')"
        )
    with path.open("rb") as file:
        digest = _file_digest(file)
    with _no_deprecation():
        try:
            # The program in the file is run, but no Python: torch's reader knows tensors and its own types.
            module: Any = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError, OSError) as error:
            said = " ".join(str(error).split())[:160]
            raise FeatlensError(f"{path} cannot be loaded as TorchScript ({said}); write it again") from error
    module.eval()
    return Extractor(str(path), _identity(inputs, digest), _quiet(module), inputs, device)


def _holds_code(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _file_digest(file: Any) -> str:
    sha = hashlib.sha256()
    while block := file.read(2**20):
        sha.update(block)
    return sha.hexdigest()


@contextlib.contextmanager
def _no_deprecation() -> Iterator[None]:
    # TorchScript is what runs without its source code; that torch means to replace it is nobody's fault here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _quiet(module: Any) -> Callable[[Tensor], Any]:
    def run(images: Tensor) -> Any:
        with _no_deprecation():
            return module(images)

    return run


def _python(text: str, options: dict[str, Any], device: str) -> Extractor:
    build = _truth("build", options.pop("build", False))
    inputs = Inputs.from_options(options)
    found = python_function(text.removeprefix("python:"), "a function from images to features")
    if found is None:
        raise UsageError(
            f"extractor {text!r}: expected python:module:function or python:./file.py:function, "
            "a function from images (B, C, H, W) to features (B, d)"
        )
    built = found() if build else found.function
    if not callable(built):
        raise FeatlensError(
            f"{text} returned a {type(built).__name__}; with build=yes a function from images to features is "
            "expected"
        )
    digest = _source_digest(found)
    if isinstance(built, nn.Module):
        built.to(device).eval()
        digest += weights_digest(built)
    call = PythonFunction(found.what, found.folder, built)
    return Extractor(text, _identity(inputs, digest), call, inputs, device)


def _source_digest(found: PythonFunction) -> str:
    """Digest of the file that defines the function; what it imports is not in it."""
    target = found.function if inspect.isroutine(found.function) else type(found.function)
    try:
        source = inspect.getsourcefile(target)
    except TypeError:
        source = None
    if source is None or not Path(source).is_file():
        return found.what
    with Path(source).open("rb") as file:
        return f"{found.what.rpartition(':')[2]}|{_file_digest(file)}"
