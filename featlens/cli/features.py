"""Feature files for the arguments of a comparison: files as they are, models extracted into a cache first."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.parser import number_list
from featlens.cli.sources import Source, stem_of
from featlens.errors import FeatlensError, StoreError, UsageError

if TYPE_CHECKING:
    from featlens.denoiser import Denoiser
    from featlens.samples import SampleSet
    from featlens.store import FeatureStore

__all__ = ["add_extraction", "cache_folder", "extracted", "given_extraction"]

LARGE = 10e9
"""Bytes of a feature file above which extraction warns."""


def add_extraction(parser: argparse.ArgumentParser) -> None:
    """Declare the options that say how models are extracted; None where they are not given."""
    group = parser.add_argument_group(
        "models (as for featlens extract; by default what the manifest of the first feature file says, else "
        "what featlens extract does)"
    )
    group.add_argument(
        "--samples",
        help="models: digits, shapes32, noise, hf:NAME, or a path of images (default: those of the feature "
        "file, else digits)",
    )
    group.add_argument("--split", help="models: part of the samples, such as held-out, train, test or all")
    group.add_argument("--n", "-n", type=int, help="models: number of samples (default: all of the split)")
    group.add_argument(
        "--noise-seed",
        type=int,
        metavar="SEED",
        help="models: seed of the noise and of the draw of --n, --seed of featlens extract (default: that of "
        "the feature file, else 0)",
    )
    group.add_argument("--values", help="models: range of float images: [-1,1] (default), [0,1], or any")
    group.add_argument("--inputs", choices=("noised", "latents"), help="models: noised (default) or latents")
    group.add_argument(
        "--labels", choices=("given", "none", "both"), help="conditional models: labels, given by default"
    )
    group.add_argument(
        "--reduce", help="models: gap (default), tokens, flatten, grid(k) or project(d); see featlens extract"
    )
    group.add_argument(
        "--halves", type=number_list(str), help="models that double their batch: names of its parts"
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="models: type of the cached features, float32 by default",
    )
    group.add_argument("--batch", type=int, help="models: images a forward pass, 128 by default")
    group.add_argument(
        "--precision", choices=("bfloat16", "float16"), help="models: autocast the forward pass"
    )
    group.add_argument(
        "--cache",
        metavar="FOLDER",
        help="models: where their features are kept and found again (default: featlens in the user's cache "
        "folder)",
    )


OPTIONS = (
    "samples", "split", "n", "noise_seed", "values", "inputs", "labels", "reduce", "halves", "dtype", "batch",
    "precision", "cache",
)  # fmt: skip


def given_extraction(args: argparse.Namespace) -> dict[str, Any]:
    """Options of :func:`add_extraction` that were given."""
    return {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}


def cache_folder(chosen: str | None = None) -> Path:
    """Folder of extracted features: the one chosen, else ``featlens`` below the user's cache folder."""
    if chosen is not None:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME", "")
    # Relative paths are to be ignored there, says the XDG base directory specification.
    return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "featlens"


def extracted(
    sources: Sequence[Source],
    options: Mapping[str, Any],
    sites: Sequence[str] | None,
    sigmas: Sequence[float] | None,
    device: str,
    allow_other_samples: bool = False,
) -> dict[str, Path]:
    """Feature file of each source by name; models are extracted into the cache, or found there.

    Parameters
    ----------
    sources
        Feature files and models.
    options
        As :func:`given_extraction` returns them; what is missing comes from the manifest of the first file.
    sites, sigmas
        What is to be compared, if that is chosen.
    device
        Where models run.
    allow_other_samples
        Whether models may be extracted on other samples than the files were.
    """
    files = {source.name: source.location for source in sources if source.is_file}
    if len(files) == len(sources):
        return {name: Path(location) for name, location in files.items()}
    if options.get("batch", 1) < 1:
        raise UsageError(f"--batch must be at least 1, got {options['batch']}")
    from featlens.comparison.side import open_sides, require_same_samples

    folder = _made(cache_folder(options.get("cache")))
    with contextlib.ExitStack() as stack:
        sides = open_sides(stack, files, None)
        if sides:
            require_same_samples(list(sides.values()), allow_other_samples)
        stores = [side.store for side in sides.values() if side.store is not None]
        work = _Work(stores, options, sites, sigmas, device, folder, allow_other_samples)
        # All are looked at before one is extracted, so that a mistake in the last costs no time.
        paths = {
            source.name: Path(source.location) if source.is_file else work.file_of(source)
            for source in sources
        }
        for source in sources:
            if not source.is_file:
                work.extract(source, paths[source.name])
        return paths


def _made(folder: Path) -> Path:
    from featlens.files import make_folder

    try:
        return make_folder(folder)
    except FeatlensError as error:
        raise FeatlensError(str(error).replace("output with -o", "folder with --cache")) from error


class _Work:
    """Extraction of models that are to be compared with files, or with one another."""

    def __init__(
        self,
        stores: Sequence[FeatureStore],
        options: Mapping[str, Any],
        sites: Sequence[str] | None,
        sigmas: Sequence[float] | None,
        device: str,
        folder: Path,
        allow_other_samples: bool,
    ) -> None:
        self.like = stores[0] if stores else None
        self.told: Mapping[str, Any] = {} if self.like is None else self.like.manifest
        self.options, self.device, self.folder = options, device, folder
        self.sites, self.allowed = sites, allow_other_samples
        self.sigmas = list(sigmas) if sigmas else _common(stores)
        self.inputs = str(options.get("inputs") or self.told.get("inputs", "noised"))
        self._samples: SampleSet | None = None

    def file_of(self, source: Source) -> Path:
        """Place of a model's features in the cache, by its weights and code and all that is asked for."""
        from featlens._version import __version__

        with self.loaded(source) as (model, samples, wanted):
            from featlens.extraction.request import Request

            name = wanted.pop("name")
            manifest = Request.checked(model, samples, **wanted).manifest(model, samples, name)
            key = _digest([manifest, _code(model), __version__])
        return self.folder / f"{_safe(stem_of(source.location))}-{key}.h5"

    def extract(self, source: Source, path: Path) -> None:
        """Make the file or finish it, unless it is complete."""
        if _usable(path):
            _say(f"{source.name}: features found in {path}")
            return
        from featlens.cli.progress import progress_bar
        from featlens.extraction import extract

        with (
            self.loaded(source) as (model, samples, wanted),
            progress_bar(f"extract {source.name}") as update,
        ):
            options = {**wanted, "out": path, "device": self.device, "warn_bytes": LARGE}
            extract(model, samples, progress=update, **options).close()
        _say(f"{source.name}: features extracted to {path}")

    @contextlib.contextmanager
    def loaded(self, source: Source) -> Iterator[tuple[Denoiser, SampleSet, dict[str, Any]]]:
        """A model, its samples, and arguments of :func:`featlens.extract`; warnings are one line each."""
        from featlens.adapters import load
        from featlens.cli.extract import one_line_warnings

        with one_line_warnings("compare"):
            model = load(source.location, self.device)
            place = source.location
            name = os.path.abspath(place) if os.path.exists(place) else place  # noqa: PTH100, PTH110
            yield model, self.samples(model), {**self.request(model), "name": name}

    def request(self, model: Denoiser) -> dict[str, Any]:
        """Arguments of :func:`featlens.extract` for a model."""
        from featlens.cli.extract import SIGMAS

        own = self.inputs == "latents" and getattr(model, "sigma_init", None) is not None
        labels = self.options.get("labels")
        if labels is None:
            labels = str(self.told.get("labels", "given")) if model.num_labels else "given"
        return {
            "sigmas": self.sigmas or (None if own else SIGMAS),
            "sites": self.sites or self.sites_like(model),
            "reduce": self.options.get("reduce") or self.reduce_like(),
            "batch": self.options.get("batch", 128),
            "halves": self.options.get("halves", ()),
            "inputs": self.inputs,
            "labels": labels,
            "dtype": self.options.get("dtype", "float32"),
            "precision": self.options.get("precision"),
        }

    def sites_like(self, model: Denoiser) -> list[str] | None:
        """Selection of sites of the first file where all of it is in the network, too; else the default."""
        from featlens.site import sites

        chosen = [str(pattern) for pattern in self.told.get("sites", ())]
        try:
            return chosen if chosen and sites(model.network, chosen) else None
        except UsageError:
            return None

    def reduce_like(self) -> str:
        """Reduction of the first file."""
        from featlens.reduce import resolve

        name = str(self.told.get("reducer", "gap"))
        try:
            resolve(name)
        except UsageError:
            where = "the first file" if self.like is None else self.like.path
            raise UsageError(
                f"{where} was reduced by {name!r}, which is known there alone; give the reduction of the "
                "models with --reduce"
            ) from None
        return name

    def samples(self, model: Denoiser) -> SampleSet:
        """Samples to extract the model on: the very same as of the files, where there are any."""
        if self._samples is None or self._samples.name == "noise":
            self._samples = _find_samples(self.options, self.like, model, self.inputs, self.allowed)
        return self._samples


def _common(stores: Sequence[FeatureStore]) -> list[float]:
    """Noise levels of the first file that the others have, too."""
    from featlens.comparison.side import same_level

    levels = [] if not stores else [float(sigma) for sigma in stores[0].sigmas]
    return [sigma for sigma in levels if all(same_level(store.sigmas, sigma).any() for store in stores[1:])]


def _find_samples(
    options: Mapping[str, Any], like: FeatureStore | None, model: Denoiser, inputs: str, allowed: bool
) -> SampleSet:
    """The sample set that the options, and where they are silent the manifest of a file, mean."""
    from featlens.cli.progress import progress_bar
    from featlens.samples import SampleSet

    told: Mapping[str, Any] = {} if like is None else like.manifest
    location = options.get("samples") or _location(like)
    seed = int(options.get("noise_seed", told.get("noise_seed", 0)))
    n = options.get("n", None if like is None else len(like))
    if location == "noise":
        if inputs != "latents" or n is None:
            raise UsageError("--samples noise has no images: give --inputs latents and --n")
        return _agreed(_noise(n, seed, model), like, allowed)
    found: SampleSet | None = None
    problem: UsageError | None = None
    for split in _splits(location, options, like is not None):
        try:
            with progress_bar(f"read {location}", "images") as update:
                samples = SampleSet.load(location, n, seed, split, options.get("values"), update)
        except UsageError as error:
            # A split that is guessed may not be there, or be too small.
            problem = problem or error
            continue
        if like is None or samples.digest == like.sample_digest:
            return samples
        found = found or samples
    if found is None:
        raise problem or UsageError(f"no samples at {location}")
    return _agreed(found, like, allowed)


def _splits(location: str, options: Mapping[str, Any], guess: bool) -> list[str | None]:
    """Parts of a sample set to try in turn; a manifest does not say which it was, but the digest does."""
    if "split" in options:
        return [options["split"]]
    first: list[str | None] = ["held-out" if location == "digits" else None]
    # Every other source has these two; the test images of CIFAR-10 are those that it holds out.
    return first + (["all", "train"] if location == "digits" else ["train", "held-out"]) if guess else first


def _noise(n: int, seed: int, model: Denoiser) -> SampleSet:
    import numpy as np

    from featlens.samples import SampleSet

    labels = np.arange(n) % model.num_labels if model.num_labels else None
    return SampleSet.noise_only(n, tuple(model.sample_shape), seed, labels)


def _agreed(samples: SampleSet, like: FeatureStore | None, allowed: bool) -> SampleSet:
    """Samples that are those of a file, or an error before a model runs for nothing."""
    if like is None or allowed or samples.digest == like.sample_digest:
        return samples
    told = like.manifest
    raise StoreError(
        f"the models would be extracted on other samples or other noise than {like.path} (digest "
        f"{samples.digest}; there {like.sample_digest or '?'}, {told.get('sample_set', '?')}, n {len(like)}, "
        f"noise seed {told.get('noise_seed', '?')}): give --samples, --split, --n, --noise-seed and --values "
        "as for that file"
    )


def _location(like: FeatureStore | None) -> str:
    from featlens.sources.shapes import find_shapes
    from featlens.store.open import shown

    name = "digits" if like is None else str(like.manifest.get("sample_set", ""))
    if like is None or name in ("digits", "noise") or find_shapes(name) is not None:
        return name
    raise UsageError(
        f"{like.path} was made of {shown(name) if name else 'samples it does not name'}, whose place is not "
        "in the file: give it with --samples, so that the models are extracted on the same images"
    )


def _usable(path: Path) -> bool:
    """Whether a complete file is in the cache; a damaged one is removed."""
    from featlens.store import FeatureStore, FileInUse

    if not path.exists():
        return False
    try:
        with FeatureStore(path) as store:
            return bool(store.complete)
    except FileInUse:
        raise
    except StoreError as error:
        _say(f"warning: {error}; it is made again")
        path.unlink(missing_ok=True)
        return False


def _code(model: Denoiser) -> list[str]:
    """Digests of the files that define the classes of a model, which its weights do not tell apart."""
    import hashlib

    kinds = {type(model), *(type(module) for module in model.network.modules())}
    homes = {kind.__module__ for kind in kinds if not kind.__module__.startswith("torch.")}
    files = {getattr(sys.modules.get(home), "__file__", None) for home in homes}
    out = []
    for file in files:
        with contextlib.suppress(OSError, TypeError):
            out.append(hashlib.sha256(Path(str(file)).read_bytes()).hexdigest())
    return sorted(out)


def _digest(parts: Any) -> str:
    import hashlib
    import json

    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _safe(name: str) -> str:
    """A name as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)[:60] or "model"


def _say(text: str) -> None:
    print(f"featlens compare: {' '.join(text.split())}", file=sys.stderr, flush=True)  # noqa: T201
