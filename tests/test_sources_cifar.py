"""CIFAR-10 that is damaged, not whole or pickled: refused in one line."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import tarfile

import pytest

from featlens import SampleSet
from featlens.errors import FeatlensError, UsageError

BATCHES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.fixture
def refused(tmp_path):
    """Loads what must be refused; the line, which must hold the given words."""

    def check(name, *words, error=FeatlensError, **options):
        with pytest.raises(error) as caught:
            SampleSet.load(tmp_path / name, **options)
        line = str(caught.value)
        assert "\n" not in line
        assert all(word in line for word in (name, *words)), line
        return line

    return check


def packed(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def batches(rng):
    return {name: (b"\3" + rng.bytes(3072)) * 2 for name in BATCHES}


def test_cifar_that_is_not_whole(tmp_path, refused, batches):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name, data in batches.items():
        (folder / name).write_bytes(data)
    refused(
        folder.name,
        "unknown split 'valid'",
        "choose from train, test, all, held-out",
        split="valid",
        error=UsageError,
    )
    (folder / "data_batch_3.bin").write_bytes(batches["data_batch_3.bin"][:-40])
    refused(
        folder.name,
        "data_batch_3.bin: expected a whole number of records of 3073 bytes, such as 6146",
        "found 6106",
    )
    (folder / "data_batch_3.bin").write_bytes(b"\x0b" + bytes(3072))
    refused(folder.name, "expected labels 0 to 9, record 0 has 11")
    (folder / "data_batch_3.bin").unlink()
    refused(folder.name, "data_batch_3.bin missing, expected all six batches; download")


def test_cifar_archives_that_are_damaged(tmp_path, refused, batches):
    path = tmp_path / "cifar-10-binary.tar.gz"
    packed(path, batches)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    line = refused(path.name, "data_batch_", "expected 6146 bytes, found ")
    assert int(re.search(r"found (\d+)", line)[1]) < 6146
    flipped = bytearray(gzip.decompress(whole))
    flipped[5000] ^= 1
    # The contents do not fit the checksum at the end.
    path.write_bytes(gzip.compress(bytes(flipped))[:-8] + whole[-8:])
    refused(path.name, "damaged or cut off", "CRC")
    packed(path, {name: data for name, data in batches.items() if "test" not in name})
    refused(path.name, "test_batch.bin missing")
    for data in (b"hello", gzip.compress(b"hello"), b""):
        path.write_bytes(data)
        refused(path.name)


def test_the_python_version_of_cifar_is_refused_for_the_binary_one(tmp_path, refused):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(pickle.dumps({}))
    refused(folder.name, "take the binary version, cifar-10-binary.tar.gz")
    packed(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": pickle.dumps({})})
    refused("cifar-10-python.tar.gz", "take the binary version, cifar-10-binary.tar.gz")
