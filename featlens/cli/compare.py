"""Compare two feature files: debiased linear CKA of all sites of A with all sites of B, at every noise level.

Each cell comes with the null level and p-value of a permutation of the samples. Without -o the best match of
each site of A is printed. Files of other samples or other noise are refused.

  featlens compare teacher.h5 student.h5
  featlens compare teacher.h5 student.h5 -o report.html
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from featlens.cli.parser import add_json, number_list

if TYPE_CHECKING:
    from featlens.comparison import Comparison

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("a", metavar="A.h5", help="feature file")
    parser.add_argument("b", metavar="B.h5", help="feature file of the same samples")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="write a page (.html), netCDF (.nc) or a table (.csv)"
    )
    parser.add_argument("--measure", default="cka", help="cka (debiased, linear kernel)")
    parser.add_argument("--sites", type=number_list(str), help="glob patterns of sites, by commas")
    parser.add_argument(
        "--sigmas", type=number_list(float), help="noise levels (default: all that both have)"
    )
    parser.add_argument(
        "--permutations", type=int, default=200, help="permutations for null level and p-value"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the permutations")
    parser.add_argument("--dry-run", action="store_true", help="print the request and leave")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print, or write a file."""
    import json

    from featlens.cli.progress import progress_bar
    from featlens.comparison import compare
    from featlens.errors import UsageError
    from featlens.files import make_folder

    suffix = Path(args.out).suffix if args.out else ""
    if args.out and suffix not in (".html", ".nc", ".csv"):
        raise UsageError(f"-o {args.out}: expected a name that ends in .html, .nc or .csv")
    if args.dry_run:
        request = {key: value for key, value in vars(args).items() if key not in ("json", "debug", "dry_run")}
        print(json.dumps(request, indent=2))  # noqa: T201
        return 0
    names = _names(args.a, args.b)
    with progress_bar("compare", "sigmas") as update:
        result = compare(
            dict(zip(names, (args.a, args.b), strict=True)),
            args.measure,
            args.sites,
            args.sigmas,
            args.permutations,
            args.seed,
            progress=update,
        )
    if args.out:
        make_folder(Path(args.out).parent)
        if suffix == ".html":
            result.report(args.out)
        else:
            result.save(args.out)
    if args.json:
        print(result.to_json())  # noqa: T201
    else:
        print(args.out if args.out else best_matches(result))  # noqa: T201
    return 0


def _names(a: str, b: str) -> tuple[str, str]:
    short = Path(a).stem, Path(b).stem
    if short[0] != short[1]:
        return short
    return (a, b) if a != b else (f"{short[0]} (A)", f"{short[1]} (B)")


def best_matches(result: Comparison) -> str:
    """Table: for each sigma and site of A the most similar site of B; stars mark cells above their null."""
    import numpy as np

    data = result.data
    sites_a, sites_b = data["site_a"].values.tolist(), data["site_b"].values.tolist()
    width = max(len(site) for site in (*sites_a, *sites_b, "site of B"))
    a, b = result.names
    lines = [f"A {a}   B {b}   {result.measure}, debiased   n {result.n}"]
    lines += [f"warning: {text}" for text in result.warnings]
    lines.append(
        f"{'sigma':>7}  {'site of A':<{width}}  {'best site of B':<{width}}  {'value':>7}  "
        f"{'null 95%':>8}  p (family)"
    )
    for i, sigma in enumerate(data["sigma"].values.tolist()):
        for j, site in enumerate(sites_a):
            row = data["value"].values[i, j]
            if np.isnan(row).all():
                lines.append(f"{sigma:>7g}  {site:<{width}}  {'undefined (constant features)':<{width}}")
                continue
            k = int(np.nanargmax(row))
            high, p = data["null_high"].values[i, j, k], data["p_family"].values[i, j, k]
            star = "" if np.isnan(p) else f"  {p:.3f}{' *' if p <= 0.05 else ''}"
            null = "" if np.isnan(high) else f"{high:8.3f}"
            lines.append(
                f"{sigma:>7g}  {site:<{width}}  {sites_b[k]:<{width}}  {row[k]:>7.3f}  {null:>8}{star}"
            )
    lines.append("* above the largest permuted value of its sigma's grid in at least 95 % of permutations")
    return "\n".join(lines)
