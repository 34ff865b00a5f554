"""A short campaign of kills, and every failure in the words in which the page on reliability tells it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featlens.comparison import compare
from featlens.errors import FeatlensError
from featlens.files import explain_os_error
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.shards import merge, shard_path

ROOT = Path(__file__).parent.parent
FILE = Path("teacher.h5")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_short_campaign_of_kills_finds_nothing() -> None:
    words = ["--kills", "6", "--jobs", "writer,merge,pack", "--rows", "600"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.reliability.kills", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "6 kills, 0 failures"


BREAK = """
import sys
import featlens.store.writer
from featlens.store.writer import FeatureWriter
from tests.reliability.kills import main

def early(self, index, features, append=FeatureWriter.append):
    import numpy as np
    rows = {name: np.array(block) for name, block in features.items()}
    rows["dec.conv"][-1, -1] += np.float32(1e-6)
    append(self, index, rows if index == 1 and self.done(1) == 64 and "a.h5" in str(self.path) else features)

FeatureWriter.append = early
sys.exit(main(["--kills", "3", "--jobs", "writer", "--rows", "300"]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_campaign_notices_one_wrong_number() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BREAK], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED writer: Broken: FeatureStore: rows 0.." in done.stdout
    assert "'dec.conv', sigma 1 are not what was written" in done.stdout


# --- the lines of the page ----------------------------------------------------------------------------------


def write(path: Path = FILE, rows: slice = slice(0, 512), stop: int | None = None, **manifest: Any) -> None:
    values = np.sqrt(np.arange(512 * 8, dtype=np.float32)).reshape(512, 8)[rows]
    sites = [SiteInfo("enc.conv", 0, 8)]
    with FeatureWriter.create(path, sites, [0.5], range(512)[rows], manifest, block=128) as writer:
        writer.append(0, {"enc.conv": values[:stop]})


def write_shards(stop: int | None = None) -> list[Path]:
    paths = [shard_path(FILE, index, 2) for index in range(2)]
    for index, path in enumerate(paths):
        place = {"index": index, "count": 2, "first": 256 * index, "total": 512}
        write(path, slice(256 * index, 256 * (index + 1)), stop if index else None, shard=place)
    return paths


def full() -> None:
    raise explain_os_error(OSError(errno.ENOSPC, "No space left on device"), FILE)


def too_small() -> None:
    FeatureWriter.create(FILE, [SiteInfo("enc.conv", 0, 100_000)], [0.5], range(1_000_000), {})


def limit() -> None:
    raise explain_os_error(OSError(errno.EFBIG, "File too large"), FILE)


def read_only() -> None:
    raise explain_os_error(OSError(errno.EACCES, "Permission denied"), FILE)


def read_only_system() -> None:
    raise explain_os_error(OSError(errno.EROFS, "Read-only file system"), FILE)


def two_writers() -> None:
    write(stop=128)
    code = "import sys; from featlens.store.open import lock_for_writing; from pathlib import Path\n"
    code += "lock_for_writing(Path('teacher.h5')); print(flush=True); sys.stdin.read()"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        try:
            FeatureWriter.resume(FILE, {})
        finally:
            other.stdin.close()


def deleted() -> None:
    with FeatureWriter.create(FILE, [SiteInfo("enc.conv", 0, 8)], [0.5], range(512), {}, block=128) as writer:
        FILE.unlink()
        writer.append(0, {"enc.conv": np.ones((128, 8), dtype=np.float32)})


def other_settings() -> None:
    write(stop=128, noise_seed=0)
    FeatureWriter.resume(FILE, {"noise_seed": 1})


def interrupted() -> None:
    write(stop=128)
    compare({"a": FILE, "b": FILE})


def truncated() -> None:
    write()
    FILE.write_bytes(FILE.read_bytes()[:-500])
    FeatureStore(FILE)


def flipped() -> None:
    write()
    with h5py.File(FILE) as file:
        start = file["sites/enc.conv"].id.get_chunk_info_by_coord((0, 256, 0)).byte_offset
    data = bytearray(FILE.read_bytes())
    data[start + 9] ^= 1
    FILE.write_bytes(data)
    FeatureStore(FILE).read("enc.conv", 0.5)


def empty() -> None:
    FILE.touch()
    FeatureStore(FILE)


def not_hdf5() -> None:
    FILE.write_text("sigma,site,value")
    FeatureStore(FILE)


def foreign() -> None:
    with h5py.File(FILE, "w") as file:
        file["x"] = [1.0]
    FeatureStore(FILE)


def newer() -> None:
    write()
    with h5py.File(FILE, "r+") as file:
        file.attrs["version"] = 2
    FeatureStore(FILE)


def overflow() -> None:
    with FeatureWriter.create(FILE, [SiteInfo("enc.conv", 0, 1)], [0.5], [0], {}, dtype="float16") as writer:
        writer.append(0, {"enc.conv": np.full((1, 1), 1e5, dtype=np.float32)})


def shard_missing() -> None:
    merge(FILE, write_shards()[:1])


def shard_incomplete() -> None:
    merge(FILE, write_shards(stop=128))


def shard_of_virtual_missing() -> None:
    shards = write_shards()
    merge(FILE, shards, virtual=True)
    shards[1].unlink()
    FeatureStore(FILE)


FAILURES = (
    full, too_small, limit, read_only, read_only_system, two_writers, deleted, other_settings, interrupted,
    truncated, flipped, empty, not_hdf5, foreign, newer, overflow, shard_missing, shard_incomplete,
    shard_of_virtual_missing,
)  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_shows_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], None]
) -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3_100_000_000}))
    with pytest.raises(FeatlensError) as caught:
        failure()
    assert f"| `{caught.value}` |" in page
