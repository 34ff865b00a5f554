"""Small files that promise much: refused before they take memory."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.hostile_helpers import N, build, replace_site

LIMITED = """
import resource, sys, time
import h5py, numpy
from featlens.errors import FeatlensError
from featlens.store import FeatureStore
with FeatureStore(sys.argv[1]) as store:
    store.read("a", 0.5)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[2:]:
    begun = time.perf_counter()
    try:
        with FeatureStore(path) as store:
            store.verify()
            for site in store.sites:
                store.read(site, 0.5)
        print("read")
    except FeatlensError as error:
        print(error)
    assert time.perf_counter() - begun < 10, path
"""


def huge_rows(path):
    build(path)
    with h5py.File(path, "r+") as file:
        for name in ("sample", "label"):
            del file[name]
            file.create_dataset(name, (2**40,), "i8", chunks=(1024,), compression="gzip")
        replace_site(file)
        file["sites"].create_dataset("a", (2, 2**40, 3), "f4", chunks=(1, 256, 3), compression="gzip")


def huge_contiguous_rows(path):
    build(path)
    with h5py.File(path, "r+") as file:
        del file["sample"]
        file.create_dataset("sample", (2**40,), "i8")


def huge_width(path):
    build(path)
    with h5py.File(path, "r+") as file:
        replace_site(file)
        file["sites"].create_dataset("a", (2, N, 2**35), "f4", chunks=(1, 1, 2**20), compression="gzip")


def huge_chunk(path):
    build(path)
    with h5py.File(path, "r+") as file:
        replace_site(file)
        dataset = file["sites"].create_dataset(
            "a", (2, N, 3), "f4", maxshape=(None, None, None), chunks=(1, 2**14, 2**15), compression="gzip"
        )
        dataset.id.write_direct_chunk((0, 0, 0), b"x" * 64)


def half_written(path):
    build(path)
    with h5py.File(path, "r+") as file:
        del file["sites/a"], file["sample"], file["label"]
        rows = 2_000_000
        file.create_dataset("sample", data=np.arange(rows), compression="gzip")
        file["sites"].create_dataset("a", (2, rows, 300), "f4", chunks=(1, 256, 300))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts memory as Linux does")
def test_a_small_file_takes_little_memory_whatever_it_promises(tmp_path, python):
    build(tmp_path / "a.h5")
    made = [huge_rows, huge_contiguous_rows, huge_width, huge_chunk, half_written]
    paths = [tmp_path / f"{make.__name__}.h5" for make in made]
    for make, path in zip(made, paths, strict=True):
        make(path)
    result = python(LIMITED, tmp_path / "a.h5", *paths)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert len(lines) == len(made)
    for path, line in zip(paths, lines, strict=True):
        assert str(path) in line and "promises" in line and "are stored" in line, line
