"""Print constraints.txt for the environment that runs this script (see the header it prints).

A pin whose release needs a newer Python than featlens does gets a marker, so that the file serves every
supported Python: where the marker does not hold, pip chooses a version by itself.
"""

from __future__ import annotations

import importlib.metadata
import re

OLDEST = (3, 10)
OURS = {"featlens"}
TOOLS = {"pip", "wheel"}
HEADER = """\
# A full working set of versions that were installed and tested together: Linux, CPU, Python 3.11.
# Used by the Makefile, by .ci/run and by anyone who wants these versions: pip install -c constraints.txt .
# A constraint installs nothing by itself. Releases that need a newer Python than 3.10 carry a marker;
# where it does not hold, pip chooses.
# To make this file anew, in a clean environment of its own:
#   pip install '.[diffusers,trackers,slurm,export,notebooks,docs,dev]' captum
#   python .ci/freeze.py > constraints.txt
"""


def normal(name: str) -> str:
    """Name in the form that the package tools compare by."""
    return re.sub(r"[-_.]+", "-", name).lower()


def marker(needs: str) -> str:
    """Environment marker for a release with this Requires-Python; empty if the oldest Python will do."""
    bound = re.search(r">=\s*(\d+(?:\.\d+)*)", needs or "")
    if bound is None:
        return ""
    numbers = tuple(int(part) for part in bound[1].split("."))
    if numbers[:2] <= OLDEST:
        return ""
    if any(numbers[2:]):
        return f' ; python_full_version >= "{bound[1]}"'
    return f' ; python_version >= "{numbers[0]}.{numbers[1]}"'


def pins() -> list[str]:
    """One line for each installed distribution, sorted by name, without local versions such as ``+cpu``."""
    lines = {}
    for distribution in importlib.metadata.distributions():
        name = normal(distribution.metadata["Name"])
        if name not in OURS | TOOLS:
            version = distribution.version.split("+")[0]
            lines[name] = f"{name}=={version}{marker(distribution.metadata.get('Requires-Python', ''))}"
    return [lines[name] for name in sorted(lines)]


if __name__ == "__main__":
    print(HEADER, *pins(), sep="\n")  # noqa: T201
