"""Linear probes for the labels of a feature file, at every site and noise level.

Accuracies are of test rows that neither the fit nor the choice of the penalty has seen, averaged over splits,
with a 95 % bootstrap interval over samples and the chance level of permuted labels.

  featlens probe teacher.h5
  featlens probe teacher.h5 -o probes.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from featlens.cli.parser import add_json, number_list

if TYPE_CHECKING:
    from featlens_probes.result import ProbeResult

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE.h5", help="feature file with labels")
    parser.add_argument("-o", "--out", metavar="FILE", help="write .json, .nc or .csv")
    parser.add_argument("--sites", type=number_list(str), help="glob patterns of sites, by commas")
    parser.add_argument("--sigmas", type=number_list(float), help="noise levels (default: all)")
    parser.add_argument("--splits", type=int, default=5, help="random splits to average over")
    parser.add_argument(
        "--permutations", type=int, default=20, help="label permutations a split for the chance level"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of splits and permutations")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Probe and print, or write a file."""
    from featlens.cli.progress import progress_bar
    from featlens.errors import UsageError
    from featlens.files import make_folder
    from featlens_probes.sweep import probe

    if args.out and Path(args.out).suffix not in (".json", ".nc", ".csv"):
        raise UsageError(f"-o {args.out}: expected a name that ends in .json, .nc or .csv")
    with progress_bar("probe", "cells") as update:
        result = probe(
            args.file,
            args.sites,
            args.sigmas,
            args.splits,
            permutations=args.permutations,
            seed=args.seed,
            progress=update,
        )
    if args.out:
        make_folder(Path(args.out).parent)
        result.save(args.out)
    if args.json:
        print(result.to_json())  # noqa: T201
    else:
        print(args.out if args.out else table(result))  # noqa: T201
    return 0


def table(result: ProbeResult) -> str:
    """Accuracies as a table, sites by rows and sigmas by columns, with the best cell by validation below."""
    data = result.data
    sites, sigmas = data["site"].values.tolist(), data["sigma"].values.tolist()
    width = max(len(site) for site in (*sites, "site"))
    lines = [f"{'site':<{width}}  " + "  ".join(f"{sigma:>7g}" for sigma in sigmas)]
    for index, site in enumerate(sites):
        lines.append(
            f"{site:<{width}}  " + "  ".join(f"{value:7.3f}" for value in data["accuracy"].values[:, index])
        )
    best = result.best()
    lines += [
        f"best by validation: {best['site']} at sigma {best['sigma']:g}: test accuracy "
        f"{best['accuracy']:.3f} (95 % interval {best['ci_low']:.3f} to {best['ci_high']:.3f}), chance "
        f"{best['chance']:.3f}",
        f"test rows {data.attrs['n_test']}, fit and validation rows {data.attrs['n_fit']}, "
        f"{data.attrs['splits']} splits",
    ]
    return "\n".join(lines)
