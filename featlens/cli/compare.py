"""Compare the features of two or more models: every site of A with every site of B, at every noise level.

Each of A, B, C ... is a feature file, or anything featlens extract takes as a model; NAME=PATH gives it a
name. Models are extracted first, on the samples, noise and noise levels of the first feature file where there
is one, and their features are kept in a cache. Every value comes with a confidence interval and its null
level under permutations of the samples. Without -o the best match of each site of A is printed. Files of
other samples or other noise are refused.

  featlens compare teacher.h5 student.h5
  featlens compare teacher.h5 runs/digits/student-teacher-random-reverse_kl-s0 -o report.html
  featlens compare a.h5 b.h5 c.h5 --reference a --measure 'cka,rsa(distance=cosine)' -o table.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.features import add_extraction, cache_folder, extracted, given_extraction
from featlens.cli.parser import add_json, measure_list, number_list, selection_list, size

if TYPE_CHECKING:
    from featlens.cli.sources import Source
    from featlens.comparison import Comparison

__all__ = ["add_arguments", "run"]

SUFFIXES = (".html", ".nc", ".csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("a", metavar="A", help="feature file or model, as PATH or NAME=PATH")
    parser.add_argument("b", metavar="B", help="feature file or model of the same samples")
    parser.add_argument("more", metavar="C", nargs="*", help="further ones; all pairs are compared")
    parser.add_argument(
        "-o",
        "--out",
        metavar="FILE",
        help="write a page (.html), netCDF (.nc) or a table of all cells (.csv)",
    )
    _add_what(parser)
    _add_statistics(parser)
    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, ...; for models and for the comparison"
    )
    how.add_argument("--memory", type=size, default=1e9, help="working memory, such as 4GB (default 1GB)")
    how.add_argument(
        "--plan",
        default="auto",
        choices=("auto", "features", "tiles"),
        help="way to compute: auto takes the cheaper one",
    )
    how.add_argument(
        "--explain", action="store_true", help="print which plan is taken, why, and its cost, and leave"
    )
    how.add_argument("--dry-run", action="store_true", help="print the resolved request and leave")
    add_json(parser)
    page = parser.add_argument_group("page (-o FILE.html)")
    page.add_argument(
        "--embedding",
        choices=("umap", "pca", "none"),
        help="picture of the samples of both models at one site: umap (and PCA, the default), pca or none",
    )
    page.add_argument(
        "--embed-site",
        metavar="SITE",
        type=selection_list,
        help="site of that picture, or SITE_OF_A=SITE_OF_B, several by commas (default: the last common one)",
    )
    page.add_argument(
        "--embed-sigma",
        metavar="SIGMA",
        type=number_list(float),
        help="noise level of that picture, several by commas (default: the middle one)",
    )
    add_extraction(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "--measure",
        type=measure_list,
        action="append",
        help="by commas or repeated, with options in parentheses as in 'rsa(distance=cosine)' (default: cka, "
        "debiased with the linear kernel)",
    )
    group.add_argument(
        "--sites",
        type=selection_list,
        help="by commas: globs of sites (default: all of a file; of a model the selection in the manifest of "
        "the first file, else '*.*')",
    )
    group.add_argument(
        "--sigmas", type=number_list(float), help="noise levels, by commas (default: all that are common)"
    )
    group.add_argument(
        "--cross-sigmas",
        action="store_true",
        help="every sigma of A with every sigma of B, not equal ones only",
    )
    group.add_argument(
        "--reference", metavar="NAME", help="compare this model with each of the others, not all pairs"
    )
    group.add_argument(
        "--rows", type=int, metavar="N", help="compare a random subset of N of the samples (default: all)"
    )
    group.add_argument(
        "--allow-other-samples",
        action="store_true",
        help="compare although samples or noise differ, where you know that rows correspond",
    )


def _add_statistics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("statistics")
    group.add_argument(
        "--permutations",
        type=int,
        help="permutations behind null level and p-values, at least; 0 for none (default: 1000 where they "
        "come from cyclic shifts, as of kernel measures, else 200)",
    )
    group.add_argument(
        "--resamples",
        type=int,
        help="random halves behind the intervals of measures without a jackknife (default 100)",
    )
    group.add_argument("--no-intervals", action="store_true", help="leave the confidence intervals out")
    group.add_argument("--level", type=float, default=0.95, help="confidence of the intervals")
    group.add_argument(
        "--draw",
        action="append",
        metavar="NAME=FILE",
        help="feature file of model NAME on another noise draw, for the noise ceiling; may be repeated",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="seed of permutations, resamples and the subset of --rows"
    )


def run(args: argparse.Namespace) -> int:
    """Compare and print, or write a file."""
    from featlens.cli.checks import require_complete, require_embeddable, require_sense, require_writable
    from featlens.cli.sources import named_sources
    from featlens.errors import UsageError

    suffix = Path(args.out).suffix if args.out else ""
    if args.out and suffix not in SUFFIXES:
        raise UsageError(f"-o {args.out}: expected a name that ends in .html, .nc or .csv")
    sources = named_sources([args.a, args.b, *args.more])
    settings = _settings(args, [source.name for source in sources])
    require_sense(args, sources, suffix)
    if args.out:
        require_writable(Path(args.out))
    if args.dry_run:
        return _dry_run(args, sources, settings)
    if args.device != "cpu":
        from featlens.cli.extract import check_device

        check_device(args.device)
    files = extracted(
        sources, given_extraction(args), args.sites, args.sigmas, args.device, args.allow_other_samples
    )
    # What a model was extracted at is chosen already, and in a richer grammar.
    settings["sites"] = args.sites and {source.name: args.sites for source in sources if source.is_file}
    if args.explain:
        return _explain(args, files, settings)
    require_complete(settings["draws"] or {})
    require_embeddable(args, files)
    result = _compared(files, settings)
    if args.out:
        _write(args, result, files)
    if args.json:
        print(result.to_json())  # noqa: T201
    elif not args.out:
        from featlens.cli.matches import best_matches, terminal_width

        _print(best_matches(result, terminal_width()))
    else:
        _warn(result)
        print(args.out)  # noqa: T201
    return 0


def _settings(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Arguments of :func:`featlens.compare` but the models; all that can be wrong without them is refused."""
    from featlens.cli.checks import read_draws
    from featlens.comparison.request import resolve_measures, resolve_pairs

    resolve_pairs(names, args.reference)
    measures = [name for names in args.measure or [["cka"]] for name in names]
    return {
        "measure": [bound.name for bound in resolve_measures(measures)],
        "sites": args.sites,
        "sigmas": args.sigmas,
        "cross_sigmas": args.cross_sigmas,
        "reference": args.reference,
        "permutations": args.permutations,
        "resamples": args.resamples,
        "intervals": not args.no_intervals,
        "level": args.level,
        "draws": read_draws(args.draw or [], names),
        "n": args.rows,
        "seed": args.seed,
        "device": args.device,
        "memory": args.memory,
        "plan": args.plan,
        "allow_other_samples": args.allow_other_samples,
    }


def _dry_run(args: argparse.Namespace, sources: Sequence[Source], settings: dict[str, Any]) -> int:
    import json

    from featlens.comparison.request import resolve_pairs

    models = [source for source in sources if not source.is_file]
    options = given_extraction(args)
    if models:
        options["cache"] = str(cache_folder(options.get("cache")))
    found = {
        "models": {source.name: source.location for source in sources},
        "extracted_first": [source.name for source in models],
        "pairs": resolve_pairs([source.name for source in sources], args.reference),
        **settings,
        "extraction": options,
        "out": args.out,
    }
    if not models:
        from featlens.comparison import plan_comparison

        files = {source.name: source.location for source in sources}
        found["planned"] = plan_comparison(files, **settings).to_dict()
    print(json.dumps(found, indent=2))  # noqa: T201
    return 0


def _explain(args: argparse.Namespace, files: dict[str, Path], settings: dict[str, Any]) -> int:
    import json

    from featlens.comparison import plan_comparison

    plan = plan_comparison(files, **settings)
    _print(json.dumps(plan.to_dict(), indent=2) if args.json else plan.explain())
    return 0


def _compared(files: dict[str, Path], settings: dict[str, Any]) -> Comparison:
    from featlens.cli.progress import progress_bar
    from featlens.comparison import compare

    with progress_bar("compare", "parts") as update:
        return compare(files, **settings, progress=update)


def _write(args: argparse.Namespace, result: Comparison, files: dict[str, Path]) -> None:
    from featlens.cli.checks import embed_site
    from featlens.files import make_folder

    make_folder(Path(args.out).parent)
    if Path(args.out).suffix != ".html":
        result.save(args.out)
        return
    options: dict[str, Any] = {"embedding": args.embedding, "embed_sigma": args.embed_sigma}
    options["embed_site"] = args.embed_site and [embed_site(word) for word in args.embed_site]
    given = {name: value for name, value in options.items() if value is not None}
    result.report(args.out, models=files, progress=_say_on_a_terminal, **given)


def _say(text: str) -> None:
    import sys

    print(f"featlens compare: {text}", file=sys.stderr, flush=True)  # noqa: T201


def _say_on_a_terminal(text: str) -> None:
    import sys

    if sys.stderr.isatty():
        _say(text)


def _warn(result: Comparison) -> None:
    from featlens.store.open import shown

    told = [*result.warnings, *(remark for panel in result.panels for remark in panel.remarks)]
    for text in dict.fromkeys(told):
        _say(f"warning: {shown(text, 1000)}")


def _print(text: str) -> None:
    """Print what may hold letters that the terminal has not."""
    import sys

    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))  # noqa: T201
