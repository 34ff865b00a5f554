"""What ``featlens compare`` refuses before any model runs and any feature is read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from featlens.cli.features import given_extraction
from featlens.cli.sources import Source

__all__ = [
    "embed_site",
    "read_draws",
    "require_complete",
    "require_embeddable",
    "require_sense",
    "require_writable",
]


def read_draws(words: Sequence[str], names: Sequence[str]) -> dict[str, str] | None:
    """Feature file of another noise draw by model, of the words ``NAME=FILE``; None where there is none."""
    from featlens.cli.sources import is_feature_file
    from featlens.errors import UsageError, choices_hint

    draws: dict[str, str] = {}
    for word in words:
        name, found, path = word.partition("=")
        if not found or not path:
            raise UsageError(f"--draw {word}: expected NAME=FILE, such as {names[0]}=other-noise.h5")
        if name not in names:
            raise UsageError(f"--draw {word}: no model is called {name!r}: {choices_hint(name, names)}")
        if name in draws:
            raise UsageError(f"--draw {word}: {name!r} has a draw already, {draws[name]}; give one a model")
        if not is_feature_file(path):
            raise UsageError(
                f"--draw {word}: expected a feature file; make one with featlens extract and another --seed"
            )
        draws[name] = path
    return draws or None


def require_sense(args: argparse.Namespace, sources: Sequence[Source], suffix: str) -> None:
    """Refuse numbers and combinations that make no sense, before any model runs."""
    from featlens.errors import UsageError

    for option, value, least in (
        ("permutations", args.permutations, 0),
        ("resamples", args.resamples, 0),
        ("rows", args.rows, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"--{option} must be {least} or more, got {value}")
    if not 0 < args.level < 1:
        raise UsageError(f"--level must be between 0 and 1, such as 0.95, got {args.level:g}")
    page = [name for name in ("embedding", "embed_site", "embed_sigma") if getattr(args, name) is not None]
    if page and suffix != ".html":
        raise UsageError(f"--{page[0].replace('_', '-')} is for the page; write one with -o NAME.html")
    models = given_extraction(args)
    if models and all(source.is_file for source in sources):
        option = next(iter(models))
        hint = "; --rows compares a part of the samples" if option == "n" else ""
        raise UsageError(
            f"--{option.replace('_', '-')} is for models that are extracted, and {sources[0].location}, "
            f"{sources[1].location} are feature files; leave it out{hint}"
        )


def require_writable(out: Path) -> None:
    """Refuse an output that cannot be written before the work instead of after it."""
    import errno
    import tempfile

    from featlens.files import explain_os_error

    folder = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{folder} is a file")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise explain_os_error(error, out) from error


def require_complete(files: Mapping[str, str]) -> None:
    """Refuse feature files that are not there, damaged or unfinished."""
    from featlens.store import FeatureStore

    for path in files.values():
        with FeatureStore(path) as store:
            store.require_complete()


def require_embeddable(args: argparse.Namespace, files: Mapping[str, Path]) -> None:
    """Refuse sites and noise levels of the picture that are not there, before the work."""
    from featlens.comparison.request import resolve_pairs
    from featlens.errors import UsageError, choices_hint
    from featlens.store import FeatureStore

    if args.embed_site is None and args.embed_sigma is None:
        return
    for pair in resolve_pairs(list(files), args.reference):
        for side, name in enumerate(pair):
            with FeatureStore(files[name]) as store:
                for site in args.embed_site or ():
                    wanted = embed_site(site)
                    chosen = wanted[side] if isinstance(wanted, tuple) else None if side else wanted
                    if chosen is not None and chosen not in store.sites:
                        hint = choices_hint(chosen, store.sites)
                        raise UsageError(f"--embed-site {site}: no site {chosen!r} in {store.path}: {hint}")
                for sigma in () if side else args.embed_sigma or ():
                    store.sigma_index(sigma)


def embed_site(word: str) -> str | tuple[str, str]:
    """A site of both models, or one of each as ``SITE_OF_A=SITE_OF_B``."""
    a, found, b = word.partition("=")
    return (a.strip(), b.strip()) if found else word
