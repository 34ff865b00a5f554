"""The background writer: in order, bounded, and its failures reach whoever runs the model."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
import torch

from featlens import FeatureStore, SampleSet, extract
from featlens.errors import FeatlensError
from featlens.extraction.background import DEPTH, BackgroundWriter
from featlens.extraction.runner import Batch
from featlens.store import FeatureWriter


def blocks(values):
    return [Batch({"a": torch.full((4, 2), float(value))}) for value in values]


class Slow:
    """A writer that waits for leave, and remembers what it was given."""

    def __init__(self):
        self.leave, self.got = threading.Event(), []

    def append(self, index, block):
        self.leave.wait(5)
        self.got.append((index, float(block["a"][0, 0]), block["a"].shape))


def test_blocks_are_written_in_their_order():
    slow = Slow()
    slow.leave.set()
    with BackgroundWriter(slow, (0.5, 2.5)) as background:
        for index in range(2):
            for value in range(5):
                background.put(index, 4 * value, blocks([value, value]))
    assert slow.got == [(index, float(value), (8, 2)) for index in range(2) for value in range(5)]


def test_a_slow_disk_holds_the_model_back():
    slow, put = Slow(), []

    def produce():
        with BackgroundWriter(slow, (0.5,)) as background:
            for value in range(10):
                background.put(0, 4 * value, blocks([value]))
                put.append(value)

    producer = threading.Thread(target=produce)
    producer.start()
    time.sleep(0.3)
    assert len(put) <= DEPTH + 1
    slow.leave.set()
    producer.join(10)
    assert len(slow.got) == 10


def test_what_goes_wrong_is_raised_and_nothing_blocks():
    class Broken:
        def append(self, index, block):
            raise FeatlensError("the disk is full")

    full = pytest.raises(FeatlensError, match="the disk is full")
    with full, BackgroundWriter(Broken(), (0.5,)) as background:
        for value in range(100):
            background.put(0, value, blocks([value]))


def test_an_error_of_the_last_block_is_raised_too():
    class Broken:
        def append(self, index, block):
            time.sleep(0.05)
            raise FeatlensError("the disk is full")

    full = pytest.raises(FeatlensError, match="the disk is full")
    with full, BackgroundWriter(Broken(), (0.5,)) as background:
        background.put(0, 0, blocks([1]))


def test_values_that_are_not_finite_are_named_with_their_row():
    slow = Slow()
    slow.leave.set()
    batch = torch.ones(4, 2)
    batch[2, 1] = float("inf")
    with (
        pytest.raises(FeatlensError, match=r"site 'a' at sigma 2\.5 are not finite in sample row 109;"),
        BackgroundWriter(slow, (0.5, 2.5), first=100) as background,
    ):
        background.put(1, 3, [Batch({"a": torch.ones(4, 2)}), Batch({"a": batch})])
    assert not slow.got


def test_large_finite_values_whose_sum_overflows_are_kept():
    slow = Slow()
    slow.leave.set()
    with BackgroundWriter(slow, (0.5,)) as background:
        background.put(0, 0, [Batch({"a": torch.full((4, 2), 3e38)})])
    assert len(slow.got) == 1


def test_a_second_interrupt_ends_the_thread_before_the_file_is_closed():
    begun, got = threading.Event(), []

    class Stuck:
        def append(self, index, block):
            begun.set()
            time.sleep(0.6)
            got.append(index)

    def interrupt_twice():
        begun.wait(5)
        for _ in range(2):
            time.sleep(0.15)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt_twice).start()
    with pytest.raises(KeyboardInterrupt), BackgroundWriter(Stuck(), (0.5,)) as background:
        for value in range(10):
            background.put(0, value, blocks([value]))
    # The block under way was finished, those that waited were left out, and nothing comes afterwards.
    assert got == [0]
    assert "featlens-writer" not in {thread.name for thread in threading.enumerate() if thread.is_alive()}


def test_the_forward_pass_runs_while_blocks_are_written(tmp_path, make_denoiser, monkeypatch):
    """While one block is written, the model goes on: writing waits here until the next pass has begun."""
    began, append = threading.Semaphore(0), FeatureWriter.append
    seen = []

    def waiting(self, index, block):
        seen.append(began.acquire(timeout=5))
        append(self, index, block)

    monkeypatch.setattr(FeatureWriter, "append", waiting)
    denoiser = make_denoiser()
    samples = SampleSet.load("digits", n=600)

    def told(done, total):
        if done > 256:
            began.release()

    with extract(denoiser, samples, [0.5], "mid.0", tmp_path / "a.h5", progress=told, batch=256) as store:
        assert store.complete
    # The first of three blocks is let go by the second, so it was written beside the forward pass.
    assert seen[:2] == [True, True]


def test_the_file_is_the_same_as_without_a_thread(tmp_path, make_denoiser):
    samples = SampleSet.load("digits", n=300)
    denoiser = make_denoiser().eval()
    extract(denoiser, samples, [0.5], "mid.0", tmp_path / "a.h5", batch=256).close()
    rows = [slice(0, 256), slice(256, 300)]
    with torch.no_grad(), FeatureStore(tmp_path / "a.h5") as store:
        for part in rows:
            x = torch.from_numpy(samples.noised(0.5, part))
            scaled = denoiser.scaling.c_in(torch.full((len(x),), 0.5))[:, None, None, None] * x
            network = denoiser.network
            inner = torch.relu(network.enc["norm"](network.enc["conv"](scaled)))
            expected = network.mid[0](inner).mean(dim=(2, 3)).numpy()
            np.testing.assert_allclose(store.read("mid.0", 0.5, part), expected, rtol=1e-5, atol=1e-6)
