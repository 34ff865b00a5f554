"""Make one feature file of the shards that several processes wrote.

'featlens extract' under torchrun or accelerate writes one shard a process and merges them itself; this
command does it for shards that were left, for example because a process was killed, or that come from
several machines. The result equals the file that a single process writes. Without SHARDs, those beside
OUT.h5 are taken: teacher.shard-0-of-2.h5 and so on. One that is missing or incomplete is named, and nothing
is written. A file of the same content is used as it is.

  featlens merge teacher.h5
  featlens merge teacher.h5 node0/teacher.shard-0-of-2.h5 node1/teacher.shard-1-of-2.h5 --remove
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from featlens.cli.parser import add_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("out", metavar="OUT.h5", help="feature file to write")
    parser.add_argument(
        "shards", metavar="SHARD.h5", nargs="*", help="shards; with one or none, all that lie beside it"
    )
    parser.add_argument(
        "--virtual",
        action="store_true",
        help="write a small file that refers to the shards, which must stay in its folder",
    )
    parser.add_argument("--remove", action="store_true", help="remove the shards when the file is whole")
    parser.add_argument("--force", action="store_true", help="replace OUT.h5 whatever it holds")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Merge and print the path."""
    import json

    from featlens.cli.progress import progress_bar
    from featlens.errors import UsageError
    from featlens.store import FeatureStore
    from featlens.store.shards import merge

    if args.virtual and args.remove:
        raise UsageError("--remove would take away the shards that a --virtual file refers to; leave one out")
    out = Path(args.out)
    shards = _shards(out, args.shards)
    with progress_bar(f"merge {out}") as update:
        merge(out, shards, args.virtual, args.force, progress=update)
    removed = shards if args.remove else []
    for shard in removed:
        shard.unlink()
    if args.json:
        with FeatureStore(out) as store:
            size = {"sites": list(store.sites), "sigmas": store.sigmas.tolist(), "n": len(store)}
        told = {"file": str(out), "virtual": args.virtual, "shards": list(map(str, shards))}
        print(json.dumps({**told, "removed": list(map(str, removed)), **size}))  # noqa: T201
    else:
        print(out)  # noqa: T201
    return 0


def _shards(out: Path, given: Sequence[str]) -> list[Path]:
    """The shards that are meant."""
    from featlens.errors import UsageError
    from featlens.store.shards import find_shards

    whole = find_shards(out)[0]
    if whole != out:
        raise UsageError(f"{out} is a shard; the file to write comes first: featlens merge {whole}")
    named = [Path(name) for name in given]
    if len(named) > 1:
        return named
    beside = find_shards(named[0] if named else out)[1]
    return named if named and named[0] not in beside else beside
