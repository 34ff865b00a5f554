"""Every block of the page on reading without featlens runs, and gives what FeatureStore gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featlens.comparison import compare
from featlens.store import FeatureStore, FeatureWriter, SiteInfo
from featlens.store.shards import merge, shard_path

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "read-without-featlens.md"
SITES = [
    SiteInfo("enc.conv", 3, 6, kind="Conv2d"),
    SiteInfo("enc.same", 4, 6, kind="Identity", same_as="enc.conv"),
    SiteInfo("dec", 1, 2, kind="Linear"),
]


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def write(path: Path, stop: int, dtype: str, rows: slice = slice(0, 90), **manifest: Any) -> None:
    numbers = np.random.default_rng(0)
    with FeatureWriter.create(
        path, SITES, [2.5, 0.5], np.arange(90)[rows], manifest, np.arange(90)[rows] % 3, dtype, block=30
    ) as writer:
        for index in range(2):
            values = {
                name: numbers.normal(size=(90, 6 if name == "enc.conv" else 2)) for name in writer.names
            }
            writer.append(index, {name: rows_of[rows][:stop] for name, rows_of in values.items()})


def run(told: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    names: dict[str, Any] = {}
    for block in blocks():
        # h5py may stand for any program: nothing of ours is imported.
        assert "featlens" not in re.sub(r"[\"'].*?[\"']", "", block)
        exec(compile(block, PAGE.name, "exec"), names)
    return names, told.readouterr().out


@pytest.mark.parametrize(("dtype", "stop"), [("float32", 90), ("float16", 90), ("float16", 60)])
def test_the_page_reads_what_featlens_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str, stop: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("teacher.h5"), stop, dtype)
    names, told = run(capsys)
    with FeatureStore("teacher.h5") as store:
        expected = store.read("enc.conv", 0.5, slice(0, stop))
        assert f"{list(store.sites)}" == "['dec', 'enc.conv', 'enc.same']"
    assert names["done"] == stop
    assert np.array_equal(names["features"], expected) and names["features"].dtype == np.float32
    assert np.allclose(names["mean"], expected.mean(axis=0), atol=1e-6)
    assert names["ids"].tolist() == list(range(90)) and names["labels"].tolist() == [0, 1, 2] * 30
    complete = "complete" if stop == 90 else "incomplete"
    assert told.splitlines() == [
        f"featlens.features 1 {complete}",
        "['dec', 'enc.conv', 'enc.same']",
        "True",
        "[]",
        f"{float(names['features'].mean())}",
    ]


def test_the_page_finds_a_missing_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = [shard_path("teacher.h5", index, 3) for index in range(3)]
    for index, shard in enumerate(shards):
        place = {"index": index, "count": 3, "first": 30 * index, "total": 90}
        write(shard, 90, "float32", slice(30 * index, 30 * index + 30), shard=place)
    merge("teacher.h5", shards, virtual=True)
    run(capsys)
    shards[1].unlink()
    assert "['teacher.shard-1-of-3.h5']" in run(capsys)[1].splitlines()


def test_the_file_that_the_page_writes_is_read_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("teacher.h5"), 90, "float32")
    names, _ = run(capsys)
    with FeatureStore("mine.h5") as store:
        assert store.complete and list(store.sites) == ["layer1", "layer2"] and len(store) == 200
        assert store.sigmas.tolist() == [0.5, 2.5] and store.manifest["model"] == "mine"
        for site, values in names["mine"].items():
            for index, sigma in enumerate((0.5, 2.5)):
                assert np.array_equal(store.read(site, sigma), values[index].astype(np.float32))
        assert store.verify() == [] and store.checksummed
    compare({"a": "mine.h5", "b": "mine.h5"})
    with h5py.File("mine.h5", "r+") as file:
        # Nothing in it is there without need.
        del file["sample"]
    with pytest.raises(Exception, match="sample"):
        FeatureStore("mine.h5")
