"""Either side of a comparison: rows of files and arrays, whole, in blocks and in subsets."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from featlens import FeatureStore, compare
from featlens.comparison import rows as rows_module
from featlens.comparison import side as side_module
from featlens.comparison.request import Handle
from featlens.comparison.rows import gather
from featlens.comparison.side import open_sides, same_level
from featlens.errors import StoreError
from tests.engine_helpers import features, rows_of

WIDTHS = {"x": 3, "y": 5}
SIGMAS = (0.1, 2.5)


@pytest.fixture(params=["file", "arrays"])
def side(request, tmp_path, make_store):
    """A side, and what it holds."""
    written = make_store(tmp_path / "a.h5", WIDTHS, SIGMAS, n=50)
    source = tmp_path / "a.h5"
    if request.param == "arrays":
        source = {site: np.stack([written[site, sigma] for sigma in SIGMAS]) for site in WIDTHS}
    with contextlib.ExitStack() as stack:
        yield open_sides(stack, {"a": source}, SIGMAS)["a"], written


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
@pytest.mark.parametrize("subset", [None, [0], [49], [3, 4, 5, 20, 21, 48], list(range(50))])
def test_rows_are_those_of_the_samples(monkeypatch, side, block, subset):
    opened, written = side
    monkeypatch.setattr(side_module, "BLOCK_BYTES", block)
    opened.subset = None if subset is None else np.array(subset)
    assert len(opened) == (50 if subset is None else len(subset))
    for (site, sigma), truth in written.items():
        truth = truth if subset is None else truth[subset]
        np.testing.assert_array_equal(opened.read(site, sigma), truth)
        np.testing.assert_array_equal(opened.read(site, sigma, 1, 4), truth[1:4])
        pieces = [opened.read(site, sigma, low, min(low + 7, len(truth))) for low in range(0, len(truth), 7)]
        np.testing.assert_array_equal(np.concatenate(pieces), truth)
        assert opened.read(site, sigma, 2, 2).shape == (0, WIDTHS[site])


def test_what_a_side_says_of_itself(side):
    opened, _ = side
    assert (opened.name, opened.n, opened.widths) == ("a", 50, WIDTHS)
    assert opened.sigmas.tolist() == list(SIGMAS)
    assert opened.select(None) == ["x", "y"]
    assert opened.select(["y"]) == ["y"]
    told = opened.provenance()["file"]
    assert told is None or told.endswith("a.h5")


@pytest.mark.parametrize("step", [1, 16, 1 << 22])
def test_rows_are_gathered_in_the_order_asked_for(monkeypatch, side, step):
    opened, written = side
    original = rows_module.gather

    rng = np.random.default_rng(0)
    for order in (rng.permutation(50), rng.permutation(50)[:7], np.array([49]), np.arange(50)):
        found = original(Handle(opened, "y", 2.5), order)
        np.testing.assert_array_equal(found, written["y", 2.5][order])
    assert gather(Handle(opened, "y", 2.5), np.array([3, 1])).dtype == np.float32


def test_levels_are_equal_up_to_rounding_in_a_text():
    sigmas = np.array([0.0, 0.002, 0.5])
    assert same_level(sigmas, 0.0).tolist() == [True, False, False]
    assert same_level(sigmas, 0.002 * (1 + 1e-9)).tolist() == [False, True, False]
    assert not same_level(sigmas, 0.00201).any()


def test_files_that_are_opened_are_closed_and_others_are_not(tmp_path, make_store):
    make_store(tmp_path / "a.h5")
    with FeatureStore(tmp_path / "a.h5") as mine:
        with contextlib.ExitStack() as stack:
            sides = open_sides(stack, {"a": mine, "b": tmp_path / "a.h5"}, None)
            theirs = sides["b"].store
        assert mine.read("enc.conv", 0.5).shape == (60, 8)
        with pytest.raises(StoreError, match="was closed"):
            theirs.read("enc.conv", 0.5)


def test_a_file_is_closed_after_a_refusal(tmp_path, make_store, monkeypatch):
    make_store(tmp_path / "a.h5")
    opened = []
    original = FeatureStore.__init__

    def watched(self, *rest, **told):
        opened.append(self)
        original(self, *rest, **told)

    monkeypatch.setattr(FeatureStore, "__init__", watched)
    with pytest.raises(Exception, match="unknown measure"):
        compare({"a": tmp_path / "a.h5", "b": tmp_path / "a.h5"}, "nonsense")
    assert len(opened) == 2
    for store in opened:
        with pytest.raises(StoreError, match="was closed"):
            store.read("enc.conv", 0.5)


def test_a_closed_store_is_refused(tmp_path, make_store):
    make_store(tmp_path / "a.h5")
    store = FeatureStore(tmp_path / "a.h5")
    store.close()
    with pytest.raises(StoreError, match=r"a\.h5 was closed; open it again"):
        compare({"a": store, "b": tmp_path / "a.h5"})


def test_arrays_are_neither_copied_nor_changed():
    x = np.random.default_rng(0).normal(size=(40, 3))
    before = x.copy()
    x.setflags(write=False)
    for name in ("cka", "cka(kernel=rbf)", "rsa", "procrustes"):
        for plan in ("tiles", "features") if name == "cka" else ("auto",):
            compare({"a": {"s": x}, "b": {"s": x[:, ::-1]}}, name, plan=plan, permutations=50, resamples=3)
    np.testing.assert_array_equal(x, before)
    opened = open_sides(contextlib.ExitStack(), {"a": {"s": x}}, None)["a"]
    assert np.shares_memory(opened.read("s", 0.0), x)


@pytest.mark.parametrize("memory", [1e9, 1e3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("factor", [1.0, 1e-30, 1e30])
def test_blocks_are_centred_and_of_about_size_one(memory, dtype, factor):
    a = {site: (x + 50) * factor for site, x in features(41)[0].items()}
    rows = rows_of(a, dtype=dtype, memory=memory)
    for index, x in enumerate(a.values()):
        blocks = [rows.block(index, number) for number in range(len(rows.starts))]
        assert {block.dtype for block in blocks} == {np.dtype(dtype)}
        truth = (x - x.mean(axis=0)) / rows.scales[index]
        atol = 1e-6 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(np.concatenate(blocks), truth, atol=atol)
        np.testing.assert_allclose(rows.norms[index], (truth**2).sum(axis=1), rtol=1e-5)
        assert 1e-3 < np.abs(truth).max() < 1e3


def test_blocks_of_all_sites_are_read_once_while_they_are_held():
    a = features(41)[0]
    rows = rows_of(a, memory=1e3)
    rows.hold(1)
    assert rows.block(0, 1) is rows.block(0, 1)
    assert rows.block(0, 2) is not rows.block(0, 2)
    kept = rows.block(0, 1)
    rows.hold(1)
    assert rows.block(0, 1) is kept
    rows.hold(0)
    assert rows.block(0, 1) is not kept
