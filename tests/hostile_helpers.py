"""Files to be spoilt, and the line with which they are refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from featlens.errors import FeatlensError
from featlens.store import FORMAT, FeatureStore

N = 6


def build(path, **changes):
    """A valid file by plain h5py; ``changes`` replace values of the root, None leaves one out."""
    parts = {"format": FORMAT, "version": 1, "complete": 1, "manifest": "{}"}
    data = {"sigma": [0.5, 2.0], "sample": np.arange(N), "label": np.arange(N)}
    parts, data = ({name: changes.get(name, value) for name, value in side.items()} for side in (parts, data))
    with h5py.File(path, "w") as file:
        file.attrs.update({name: value for name, value in parts.items() if value is not None})
        for name, value in {**data, "rows_done": changes.get("rows_done")}.items():
            if value is not None:
                file[name] = value
        file["sites/a"] = np.ones((2, N, 3), dtype=np.float32)


def replace_site(file, value=None, **options):
    del file["sites/a"]
    if value is not None:
        file.create_dataset("sites/a", data=value, **options)


def refused(path):
    """The one line with which the file, or the reading of its rows, is refused."""
    with pytest.raises(FeatlensError) as caught, FeatureStore(path) as store:
        for site in store.sites:
            store.read(site, 0.5)
    line = str(caught.value)
    assert line.isprintable() and str(path) in line and len(line) < len(str(path)) + 400, line
    return line


def hide(folder):
    """Another HDF5 file and another plain file, which nobody may look into."""
    with h5py.File(folder / "secret.h5", "w") as file:
        file["x"] = np.full((2, N, 3), 42.0, dtype=np.float32)
        file["v"] = np.arange(N)
    (folder / "secret.bin").write_bytes(b"s" * 4096)
    return folder
