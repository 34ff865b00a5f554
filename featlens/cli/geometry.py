"""Measure the shape of the features in one file: one row for each noise level and site.

Columns: effective rank, RankMe, participation ratio, TwoNN intrinsic dimension, anisotropy (mean cosine
between samples) and the share of dead units. Each comes with a 95 % interval, the value +- 1.96 times its
standard deviation over random halves of the samples (the half-sample method); it does not contain what a
larger number of samples would change. One site at one noise level is in memory at a time.

  featlens geometry teacher.h5
  featlens geometry teacher.h5 --sites "enc.*" --resamples 0 -o geometry.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.parser import add_json, number_list, selection_list

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featlens.store import FeatureStore

__all__ = ["add_arguments", "run"]

LEAST = 4
NORMAL = 1.96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", metavar="FILE.h5", help="feature file")
    parser.add_argument(
        "-o", "--out", metavar="TABLE.csv", help="write the table, with ends of the intervals"
    )
    parser.add_argument("--sites", type=selection_list, help="glob patterns of sites, by commas")
    parser.add_argument("--sigmas", type=number_list(float), help="noise levels (default: all)")
    parser.add_argument(
        "--n",
        type=int,
        default=2000,
        metavar="ROWS",
        help="samples to use; of a larger file as many are drawn at random, and a notice says so",
    )
    parser.add_argument(
        "--resamples", type=int, default=50, help="random halves for the intervals; 0 for no intervals"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples and halves drawn")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print, or write a table."""
    import json
    import sys

    from featlens._version import __version__
    from featlens.cli.progress import progress_bar
    from featlens.files import make_folder, write_text
    from featlens.store import FeatureStore

    _check(args)
    with FeatureStore(args.file) as store:
        store.require_complete()
        rows, notices = _rows(store, args.n, args.seed, args.resamples)
        for notice in notices:
            print(f"featlens geometry: {notice}", file=sys.stderr)  # noqa: T201
        with progress_bar("geometry", "cells") as update:
            cells = _cells(store, args, rows, update)
        provenance = {
            "file": str(store.path),
            **store.manifest,
            "resamples": args.resamples,
            "seed": args.seed,
            "creator": f"featlens {__version__}",
        }
    if args.out:
        make_folder(Path(args.out).parent)
        write_text(args.out, _csv(cells))
    if args.json:
        print(json.dumps({"cells": cells, "notices": notices, "provenance": provenance}))  # noqa: T201
    else:
        print(args.out if args.out else _table(cells))  # noqa: T201
    return 0


def _check(args: argparse.Namespace) -> None:
    from featlens.errors import UsageError

    if args.out and Path(args.out).suffix != ".csv":
        raise UsageError(f"-o {args.out}: expected a name that ends in .csv")
    if args.n < LEAST:
        raise UsageError(f"--n must be {LEAST} or more, got {args.n}")
    if args.resamples < 0 or args.resamples == 1:
        raise UsageError(f"--resamples must be 0 or at least 2, got {args.resamples}")


def _rows(store: FeatureStore, most: int, seed: int, resamples: int) -> tuple[NDArray[np.int64], list[str]]:
    """Rows to use, in order, and what there is to say about them."""
    import numpy as np

    from featlens.errors import StoreError
    from featlens.measures.halves import LEAST as FOR_HALVES
    from featlens.seeds import derive

    n, notices = len(store), []
    if n < LEAST:
        raise StoreError(f"{store.path} has {n} samples; at least {LEAST} are needed, extract more")
    rows = np.arange(n)
    if n > most:
        rows = np.sort(np.random.default_rng(derive(seed, "geometry")).permutation(n)[:most])
        notices.append(f"{most:,} of {n:,} samples are used, drawn with seed {seed}; --n {n} takes all")
    if resamples and len(rows) < FOR_HALVES:
        notices.append(f"no intervals: {len(rows)} samples are used and {FOR_HALVES} needed")
    return rows, notices


def _cells(
    store: FeatureStore, args: argparse.Namespace, rows: NDArray[np.int64], update: Any
) -> list[dict[str, Any]]:
    sigmas = store.sigmas.tolist() if args.sigmas is None else args.sigmas
    levels = [float(store.sigmas[store.sigma_index(sigma)]) for sigma in sigmas]
    sites = store.select(args.sites)
    cells: list[dict[str, Any]] = []
    for sigma in dict.fromkeys(levels):
        known: dict[str, dict[str, float | None]] = {}
        for site in sites:
            info = store.sites[site]
            shared = info.same_as or site
            if shared not in known:
                known[shared] = _numbers(_read(store, site, sigma, rows), args.resamples, args.seed)
            cells.append({"sigma": sigma, "site": site, "n": len(rows), "width": info.width, **known[shared]})
            update(len(cells), len(sites) * len(set(levels)))
    return cells


def _read(store: FeatureStore, site: str, sigma: float, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Features (rows, width), read block by block."""
    import numpy as np

    from featlens.errors import StoreError

    out = np.empty((len(rows), store.sites[site].width), dtype=np.float32)
    for part, block in store.blocks(site, sigma):
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise StoreError(
                f"{store.path}: row {part.start + int(bad.argmax())} of site {site!r} at sigma {sigma:g} "
                "holds NaN or infinity; extract again, or leave the site out with --sites"
            )
        low, high = np.searchsorted(rows, (part.start, part.stop))
        out[low:high] = block[rows[low:high] - part.start]
    return out


def _numbers(x: NDArray[np.float32], resamples: int, seed: int) -> dict[str, float | None]:
    """Values and ends of their intervals by name; None where there is none."""
    import math

    from featlens.measures.geometry import GEOMETRY, geometry
    from featlens.measures.halves import LEAST as FOR_HALVES
    from featlens.measures.halves import half_sample_errors
    from featlens.seeds import derive

    values = geometry(x)
    errors = dict.fromkeys(GEOMETRY, math.nan)
    if resamples and len(x) >= FOR_HALVES:
        errors = half_sample_errors(x, resamples, derive(seed, "halves"))
    numbers: dict[str, float | None] = {}
    for name, value in values.items():
        reach = NORMAL * errors[name]
        found = {name: value, f"{name}_low": value - reach, f"{name}_high": value + reach}
        numbers |= {key: number if math.isfinite(number) else None for key, number in found.items()}
    return numbers


def _csv(cells: list[dict[str, Any]]) -> str:
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, list(cells[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return out.getvalue()


def _table(cells: list[dict[str, Any]]) -> str:
    from featlens.measures.geometry import GEOMETRY

    header = ["sigma", "site", "n", "width", *GEOMETRY]
    lines = [header]
    for cell in cells:
        told = [f"{cell['sigma']:g}", cell["site"], str(cell["n"]), str(cell["width"])]
        lines.append(told + [_with_interval(cell, name) for name in GEOMETRY])
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rows = [
        "  ".join(
            text.ljust(width) if column == 1 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    if any(cell[f"{name}_low"] is not None for cell in cells for name in GEOMETRY):
        rows.append("+-: 95 % interval from random halves of the samples")
    return "\n".join(rows)


def _with_interval(cell: dict[str, Any], name: str) -> str:
    value, high = cell[name], cell[f"{name}_high"]
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if high is None else f" +-{high - value:.3f}")
