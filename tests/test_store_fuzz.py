"""Feature files with changed bytes: read rightly or refused in one line; never a crash, never another error.

Files are opened in a process of their own, so that a crash inside libhdf5 is seen as such.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featlens.store import FeatureWriter, SiteInfo

SECONDS = 20

READER = """
import json, resource, sys, warnings
from pathlib import Path
import h5py, numpy as np
from featlens.errors import FeatlensError
from featlens.store import FeatureStore

def everything(path):
    with FeatureStore(path) as store:
        told = [store.sigmas.tolist(), store.ids.tolist(), np.array(store.labels).tolist(), store.manifest,
                [repr(site) for site in store.sites.values()], store.complete]
        found, damaged = {}, set()
        for site in store.sites:
            for index, sigma in enumerate(store.sigmas):
                rows = slice(0, int(store.rows_done[index]))
                try:
                    found[site, float(sigma)] = store.read(site, float(sigma), rows)
                    for _ in store.blocks(site, float(sigma), 3):
                        pass
                except FeatlensError as error:
                    damaged.add((site, float(sigma)))
                    check(error)
        seen = {(damage.site, damage.sigma) for damage in store.verify()}
        for site, sigma in damaged:
            assert (store.sites[site].same_as or site, sigma) in seen, "verify missed what read refused"
        repr(store), store.dtype, store.checksummed
    return told, found, damaged

def check(error):
    assert str(error).isprintable() and len(str(error)) < 1000, repr(str(error))

def judge(path):
    try:
        told, found, damaged = everything(path)
    except FeatlensError as error:
        check(error)
        return "refused"
    same = told == header and set(found) <= set(truth) and all(
        np.array_equal(values, truth[key][: len(values)]) for key, values in found.items())
    return "same" if same and not damaged else "damaged" if same else "other"

path, base = Path(sys.argv[2]), Path(sys.argv[1])
header, truth, _ = everything(base)
# Address space, not memory: room for what HDF5 and numpy have mapped, and half a gigabyte more.
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (512 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
warnings.simplefilter("error")
for line in sys.stdin:
    try:
        print(judge(path), flush=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts memory as Linux does")


class Reader:
    """A process that opens one path again and again, and what it says of it."""

    def __init__(self, base, path):
        self.base, self.path, self.process = base, path, None

    def __call__(self, data):
        self.path.write_bytes(data)
        if self.process is None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self.process = subprocess.Popen(
                [sys.executable, "-c", READER, str(self.base), str(self.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        self.process.stdin.write(b"\n")
        if not select.select([self.process.stdout], [], [], SECONDS)[0]:
            self.close()
            return "hangs"
        line = self.process.stdout.readline().decode().strip()
        if not line:
            code = self.process.wait()
            self.close()
            return f"dies with {code}"
        return line

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "base.h5"
    rng = np.random.default_rng(0)
    sites = [
        SiteInfo("enc.conv", 0, 8, 8, 16, "gap", "Conv2d"),
        SiteInfo("dec", 1, 3, 3, 0, "gap", "Linear"),
        SiteInfo("dec.same", 2, 3, 3, 0, "gap", "Identity", same_as="dec"),
    ]
    manifest = {"model": "m", "sample_digest": "0123", "sigmas": [0.5, 2.0]}
    with FeatureWriter.create(
        path, sites, [0.5, 2.0], np.arange(20) + 3, manifest, labels=np.arange(20) % 3, block=8
    ) as writer:
        for index in range(2):
            block = {name: rng.normal(size=(20, width)) for name, width in (("enc.conv", 8), ("dec", 3))}
            writer.append(index, block)
    return path


@pytest.fixture(scope="module")
def reader(base):
    made = Reader(base, base.with_name("changed.h5"))
    yield made
    made.close()


def flipped(data, places):
    for place, bit in places:
        data[place % len(data)] ^= 1 << bit
    return data


def cut(data, places):
    del data[places[0][0] % len(data) :]
    return data


def spliced(data, places):
    """Pieces of the file over other places of it."""
    for place, size in places:
        start, source = place % len(data), place * 2_654_435_761 % len(data)
        piece = data[source : source + 8 * size + 1]
        data[start : start + len(piece)] = piece[: len(data) - start]
    return data


def blanked(data, places):
    for place, size in places:
        start = place % len(data)
        data[start : start + size + 1] = b"\0" * len(data[start : start + size + 1])
    return data


def shifted(data, places):
    """Bytes put in, so that all behind them moves."""
    for place, size in places:
        data[place % (len(data) + 1) : place % (len(data) + 1)] = bytes([place % 256]) * (size + 1)
    return data


CHANGES = st.lists(
    st.tuples(
        st.sampled_from([flipped, flipped, flipped, cut, spliced, spliced, blanked, shifted]),
        st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=2,
)


def changed(base, changes):
    data = bytearray(base.read_bytes())
    for change, places in changes:
        data = change(data, places) if data else data
    return bytes(data)


@given(CHANGES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_bytes_are_read_rightly_or_refused(base, reader, changes):
    assert reader(changed(base, changes)) in ("same", "damaged", "refused")


@given(st.integers(0, 1 << 20), st.integers(0, 7))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_flipped_bit_changes_no_number(base, reader, place, bit):
    assert reader(changed(base, [(flipped, [(place, bit)])])) in ("same", "damaged", "refused")


VALUES = [
    7,
    -1,
    2**62,
    0.5,
    float("nan"),
    "text",
    "{",
    b"\xff\x00\xff",
    [],
    [1, 2],
    np.arange(20),
    np.zeros((2, 20)),
    np.zeros((2, 20, 3)),
    np.zeros((2, 20, 3), dtype=np.float16),
    np.zeros((2, 20, 0)),
    np.zeros((0, 20, 3)),
    np.full(20, "x", dtype=object),
    np.zeros(20, dtype=[("x", "i4")]),
    np.zeros(20, dtype=np.uint64) - 1,
    h5py.Empty("f8"),
    h5py.SoftLink("/sites"),
    h5py.SoftLink("/sample"),
    h5py.ExternalLink("base.h5", "/sites"),
    np.dtype("f4"),
    None,
]
NAMES = ["sigma", "sample", "label", "rows_done", "sites", "sites/enc.conv", "sites/dec", "sites/new", "new"]
ATTRIBUTES = ["format", "version", "complete", "manifest", "order", "channels", "reducer", "kind", "aliases"]


def put(file, name, value):
    """One value, group, link or type in the place of what is there."""
    if name in file:
        del file[name]
    if value is None:
        file.create_group(name)
    elif isinstance(value, str) or not isinstance(value, list) or value:
        file[name] = value


def set_attribute(thing, name, value):
    if isinstance(value, (h5py.SoftLink, h5py.ExternalLink, np.dtype)) or value is None:
        thing.attrs.pop(name, None)
    else:
        thing.attrs[name] = value


def restructure(file, change, name, attribute, number):
    value = VALUES[number]
    if change == "put":
        put(file, name, value)
    elif change == "again":
        file[f"sites/again{number}"] = file[name]
    else:
        set_attribute(file[name] if attribute in ATTRIBUTES[4:] else file, attribute, value)


STRUCTURE = st.lists(
    st.tuples(
        st.sampled_from(["put", "again", "attribute"]),
        st.sampled_from(NAMES),
        st.sampled_from(ATTRIBUTES),
        st.integers(0, len(VALUES) - 1),
    ),
    min_size=1,
    max_size=4,
)


@given(STRUCTURE)
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_structure_is_read_or_refused(base, reader, changes):
    work = base.with_name("work.h5")
    work.write_bytes(base.read_bytes())
    with h5py.File(work, "r+") as file:
        for change in changes:
            # What h5py refuses to make is not there to be read.
            with contextlib.suppress(ValueError, TypeError, OSError, KeyError, RuntimeError):
                restructure(file, *change)
    assert reader(work.read_bytes()) in ("same", "damaged", "refused", "other")


def test_the_judge_sees_what_it_is_there_for(base, reader):
    """An unchanged file is the same; a crash, an endless loop and other numbers would show."""
    data = base.read_bytes()
    assert reader(data) == "same"
    assert reader(b"") == "refused"
    other = base.with_name("other.h5")
    with FeatureWriter.create(other, [SiteInfo("enc.conv", 0, 8)], [0.5], [1], {}) as writer:
        writer.append(0, {"enc.conv": np.zeros((1, 8))})
    assert reader(other.read_bytes()) == "other"
    reader.process.kill()
    assert reader(data).startswith("dies with -9")
    assert reader(data) == "same"
