"""Small feature files, and the script that writes one in another process."""

from __future__ import annotations

import numpy as np

from featlens.store import FeatureWriter, SiteInfo

N = 700


def features(n, seed=0, widths=(("enc.conv", 8), ("dec#0", 3))):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(n, width)).astype(np.float32) for name, width in widths}


def create(path, n=N, sigmas=(0.5, 2.0), manifest=None, **options):
    sites = [
        SiteInfo("enc.conv", 0, 8, channels=8, resolution=16, reducer="gap"),
        SiteInfo("dec#0", 1, 3, reducer="gap"),
    ]
    return FeatureWriter.create(path, sites, sigmas, np.arange(n) + 5, manifest or {"model": "m"}, **options)


def cut(block, start, stop):
    return {name: values[start:stop] for name, values in block.items()}


# Writes a file block by block, continuing what is there; every number is a function of its place alone.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from featlens.errors import FeatlensError
from featlens.store import FeatureStore, FeatureWriter, SiteInfo

N, SIGMAS, WIDTHS = 2000, [0.5, 2.0], {"enc.conv": 48, "dec.conv": 7}

def open_writer(path):
    if path.exists():
        return FeatureWriter.resume(path, {"model": "m"})
    sites = [SiteInfo(name, order, width) for order, (name, width) in enumerate(WIDTHS.items())]
    return FeatureWriter.create(path, sites, SIGMAS, np.arange(N), {"model": "m"})

def block(index, start, stop):
    rows = np.arange(start, stop, dtype=np.float32)[:, None]
    return {name: rows * 1000 + np.arange(width, dtype=np.float32) + index for name, width in WIDTHS.items()}

def fill(writer, blocks=10**9):
    for index in range(len(SIGMAS)):
        while writer.done(index) < N and blocks > 0:
            start = writer.done(index)
            writer.append(index, block(index, start, min(start + writer.block, N)))
            blocks -= 1

path = Path(sys.argv[1])
"""


def checked(result):
    assert result.returncode == 0, result.stderr
    return result.stdout


def expected(site, index, rows):
    width = {"enc.conv": 48, "dec.conv": 7}[site]
    return np.arange(rows)[:, None] * 1000 + np.arange(width) + index
