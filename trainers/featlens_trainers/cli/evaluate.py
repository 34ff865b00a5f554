"""Measure generated images against reference images: distances, precision, recall, density, coverage.

RUN is a run of a study, one of its snapshots, or any model that featlens loads; with --images a folder or
file of images is measured instead. Features are those of the study's own classifier unless --extractor names
a TorchScript file or a Python function. All numbers depend on the numbers of images, the features and the
reference: the card (-o) holds them all, and --against refuses a card that differs in one of them.

  featlens evaluate runs/digits/student-teacher-random-reverse_kl-s0
  featlens evaluate runs/digits/teacher --n 5000 -o teacher.json
  featlens evaluate runs/digits/student-teacher-random-reverse_kl-s0 --n 5000 --against teacher.json
  featlens evaluate runs/digits/student-teacher-random-reverse_kl-s0 --best-of 1,2,4,8 -o k.html
  featlens evaluate --images samples/ --reference data/ --extractor inception.ts:range=uint8,size=299,rgb=yes
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featlens.cli.parser import number_list
from featlens_trainers.cli.sample import add_sampling, best_of_config, generator_of

if TYPE_CHECKING:
    from featlens_trainers.evaluation.cards import Card, Difference
    from featlens_trainers.evaluation.evaluating import Progress
    from featlens_trainers.evaluation.extractors import Extractor
    from featlens_trainers.evaluation.images import Images
    from featlens_trainers.evaluation.models import Generator

__all__ = ["add_arguments", "run"]

DEFAULT_N = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", nargs="?", help="run of a study, snapshot, or any model")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="card to write (.json), or with --best-of a figure (.html)"
    )
    parser.add_argument(
        "--n", type=int, help=f"number of generated images (default {DEFAULT_N}; of --images all)"
    )
    parser.add_argument(
        "--best-of",
        type=number_list(int),
        default=[1],
        metavar="K,...",
        help="candidates an image, of which the student's ratio network keeps one; a row for each number",
    )
    images = parser.add_argument_group("images")
    images.add_argument("--images", metavar="PATH", help="measure these images instead of a model's")
    images.add_argument("--images-split", metavar="SPLIT", help="part of --images, such as train")
    images.add_argument(
        "--reference", metavar="LOCATION", help="reference images (default: those that the study held out)"
    )
    images.add_argument("--reference-split", metavar="SPLIT", help="part of --reference, such as held-out")
    images.add_argument("--reference-n", type=int, help="number of reference images (default: all)")
    values = "range of floats in {}: [-1,1] (default), [0,1] or [0,255]"
    images.add_argument("--images-values", metavar="RANGE", help=values.format("--images"))
    images.add_argument("--reference-values", metavar="RANGE", help=values.format("--reference"))
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--extractor",
        metavar="LOCATION",
        help="FILE.ts (TorchScript), python:module:function, or the folder of a study (its classifier); "
        "options follow, as in inception.ts:range=uint8,size=299,rgb=yes",
    )
    how.add_argument("--resamples", type=int, default=100, help="draws behind the errors; 0 for none")
    how.add_argument("--kid-block", type=int, help="images a block of the block-averaged KID")
    how.add_argument(
        "--extrapolate", action="store_true", help="also estimate the Frechet distance for endless images"
    )
    how.add_argument("--against", metavar="CARD.json", help="print differences from another card")
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    """Sample, measure, compare, write, print."""
    _check(args)
    from featlens.cli.extract import check_device
    from featlens.files import make_folder
    from featlens_trainers.evaluation.cards import cards_text, load_cards, save_cards

    check_device(args.device)
    if args.out:
        make_folder(Path(args.out).parent)
    other = _one(load_cards(args.against), args.against) if args.against else None
    with _bars() as progress:
        cards = _measured(args, progress)
    found = [] if other is None else cards[0].differences(other)
    if args.out and Path(args.out).suffix == ".html":
        from featlens_trainers.evaluation.page import write_candidates_page

        write_candidates_page(args.out, cards)
    elif args.out:
        save_cards(args.out, cards)
    for line in cards[0].warnings:
        print(f"featlens evaluate: warning: {line}", file=sys.stderr)  # noqa: T201
    print(_as_json(cards_text(cards), found) if args.json else "\n".join(_lines(args, cards, found)))  # noqa: T201
    return 0


def _check(args: argparse.Namespace) -> None:
    from featlens.errors import UsageError

    n = DEFAULT_N if args.n is None else args.n
    if n < 2 or args.steps < 1:
        raise UsageError(f"--n must be at least 2 and --steps at least 1, got {n} and {args.steps}")
    if (args.run is None) == (args.images is None):
        raise UsageError("expected a RUN or --images PATH, one of the two; see featlens evaluate --help")
    ks = args.best_of
    if min(ks) < 1 or len(set(ks)) != len(ks):
        raise UsageError(f"--best-of: expected different numbers from 1, got {','.join(map(str, ks))}")
    if args.images is not None and (ks != [1] or args.label is not None):
        raise UsageError("--best-of and --label are for models; --images takes the images as they are")
    suffix = Path(args.out).suffix if args.out else ".json"
    if suffix not in (".json", ".html"):
        raise UsageError(f"-o {args.out}: expected a name that ends in .json or .html")
    if suffix == ".html" and len(ks) < 2:
        raise UsageError(f"-o {args.out}: a figure shows several numbers of candidates; give --best-of 1,2,4")
    if args.against and len(ks) > 1:
        raise UsageError("--against compares one card; give --best-of one number")
    for option in ("images", "reference"):
        for part in ("split", "n", "values"):
            name = f"{option}_{part}"
            if getattr(args, name, None) is not None and getattr(args, option) is None:
                raise UsageError(f"--{name.replace('_', '-')} goes with --{option}; give that too")


def _measured(args: argparse.Namespace, progress: Progress) -> list[Card]:
    from featlens_trainers.evaluation.evaluating import Evaluation
    from featlens_trainers.settings import MetricConfig

    metrics = MetricConfig(kid_block=args.kid_block, resamples=args.resamples, extrapolate=args.extrapolate)
    generator = None if args.run is None else generator_of(args, max(args.best_of))
    extractor = _extractor(args, generator)
    reference = _reference(args, generator)
    cache = Path(args.out).parent / "reference-features" if args.out else None
    evaluation = Evaluation(extractor, reference, metrics, cache, progress=progress)
    if generator is None:
        return [evaluation.images(_given(args))]
    n = DEFAULT_N if args.n is None else args.n
    return evaluation.generator(generator, n, args.seed, args.best_of, best_of_config(args))


def _given(args: argparse.Namespace) -> Images:
    from featlens_trainers.evaluation.images import load_images

    return load_images(args.images, args.images_split, args.n, args.images_values)


def _extractor(args: argparse.Namespace, generator: Generator | None) -> Extractor:
    from featlens.errors import UsageError
    from featlens_trainers.evaluation.extractors import classifier_extractor, load_extractor

    if args.extractor:
        return load_extractor(args.extractor, args.device)
    if generator is None or generator.study is None:
        raise UsageError(
            f"{args.run or args.images} belongs to no study whose classifier could measure it; give "
            "--extractor FILE.ts, python:module:function or the folder of a study"
        )
    return classifier_extractor(generator.study, args.device)


def _reference(args: argparse.Namespace, generator: Generator | None) -> Images:
    from featlens.errors import UsageError
    from featlens_trainers.evaluation.images import load_images

    if args.reference:
        return load_images(args.reference, args.reference_split, args.reference_n, args.reference_values)
    found = None if generator is None else _held_out(generator)
    if found is None:
        raise UsageError(
            f"{args.run or args.images} belongs to no study that held images out; give --reference LOCATION"
        )
    return found


def _held_out(generator: Generator) -> Images | None:
    """Images that the study of a run held out, as it measures with them itself; None without a study."""
    from featlens_trainers.data import load_data
    from featlens_trainers.evaluation.images import images_of
    from featlens_trainers.runs import read_run
    from featlens_trainers.settings import EvaluationConfig

    if generator.study is None or generator.snapshot is None:
        return None
    if (generator.study / "study.toml").exists():
        from featlens_trainers.study import Study
        from featlens_trainers.tasks import data_of

        config = Study.open(generator.study).config
        held = data_of(config, "held-out")
        return images_of(held, f"{config.data} (held-out)", config.evaluation.reference)
    # Of single trainings only the runs know which images they did not see.
    said = (read_run(generator.snapshot.parents[2]) or {}).get("config", {})
    if "data" not in said:
        return None
    # Runs of one folder are measured with as many images, whatever each was told.
    most = EvaluationConfig().reference
    count = most if said["data"].startswith("shapes") else None
    held = load_data(
        said["data"], "held-out", count, said.get("seed", 0), said.get("values"), said.get("holdout")
    )
    return images_of(held, f"{said['data']} (held-out)", most)


def _one(cards: Sequence[Card], path: str) -> Card:
    from featlens.errors import UsageError

    if len(cards) > 1:
        raise UsageError(f"{path} holds {len(cards)} cards; give one that was written with one --best-of")
    return cards[0]


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    """Progress of one thing after the other."""
    from featlens.cli.progress import progress_bar

    with contextlib.ExitStack() as stack:
        bars: dict[str, Any] = {}

        def say(what: str, done: int, total: int) -> None:
            if what not in bars:
                stack.close()
                unit = "draws" if what == "errors" else "images"
                bars[what] = stack.enter_context(progress_bar(f"evaluate: {what}", unit))
            bars[what](done, total)

        yield say


def _as_json(text: str, found: Sequence[Difference]) -> str:
    import json
    import math
    from dataclasses import asdict

    if not found:
        return text
    rows = [{key: None if value != value else value for key, value in asdict(row).items()} for row in found]
    assert all(not isinstance(value, float) or math.isfinite(value) for row in rows for value in row.values())
    return json.dumps({**json.loads(text), "differences": rows}, allow_nan=False)


def _lines(args: argparse.Namespace, cards: Sequence[Card], found: Sequence[Difference]) -> list[str]:
    from featlens_trainers.evaluation.page import said

    first = cards[0]
    cost = "" if first.network_evaluations is None else f", {first.network_evaluations} evaluations each"
    lines = [
        f"{first.generated} images{cost}, against {first.reference} of {first.reference_images['name']}; "
        f"features of {first.extractor['name']}"
    ]
    if found:
        lines += [_difference(row) for row in found]
    elif len(cards) > 1:
        names = list(first.values)
        rows = [
            ["k", *names],
            *([str(card.best_of), *(said(card, name) for name in names)] for card in cards),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
        ]
    else:
        lines += [f"{LABELS.get(name, name)} {said(first, name)}" for name in first.values]
    return [*lines, args.out] if args.out else lines


LABELS = {
    "frechet": "Frechet",
    "kid": "KID",
    "kid_blocks": "KID in blocks",
    "frechet_infinity": "Frechet infinity",
}


def _difference(row: Difference) -> str:
    error = "" if row.error != row.error else f" ± {row.error:.4f}"
    name = LABELS.get(row.metric, row.metric)
    return f"{name} {row.value:.4f} - {row.other:.4f} = {row.difference:+.4f}{error}"
