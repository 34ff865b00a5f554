"""Write the report of a study again.

Of a study that is not finished, too: the page says what is missing.

  featlens report runs/digits
"""

from __future__ import annotations

import argparse

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("run", metavar="RUN", help="folder of a study, such as runs/digits")
    parser.add_argument(
        "-o", "--out", metavar="FILE.html", help="where to write (default: report.html in the folder)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Collect what is there and render it."""
    from pathlib import Path

    from featlens.files import make_folder
    from featlens_trainers.cli.study import show
    from featlens_trainers.results import collect, write_results
    from featlens_trainers.study import Study
    from featlens_trainers.study_report import write_report

    study = Study.open(args.run)
    if args.out:
        make_folder(Path(args.out).parent)
    results = collect(study.folder, study.config)
    if not args.out:
        write_results(study.folder, results)
    return show(results, write_report(study.folder, study.config, results, args.out), args.json)
