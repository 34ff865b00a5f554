"""Reading ahead: the same batches, read by a thread that is gone when nothing is left to read."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from featlens import SampleSet
from featlens.errors import FeatlensError
from featlens.sources import LazyImages
from featlens.sources.pixels import Pixels
from featlens_trainers import (
    BodyConfig,
    DistillConfig,
    TeacherConfig,
    Training,
    UNetConfig,
    ahead,
    build_denoiser,
    distill,
    start_body,
    start_teacher,
    train_body,
    train_teacher,
)
from featlens_trainers.batches import Batches
from featlens_trainers.classifier import Classifier, start_classifier, train_classifier
from featlens_trainers.data import LazyData, TensorData, read_ahead
from featlens_trainers.engine import Engine
from featlens_trainers.settings import ClassifierConfig
from tests.distill_helpers import started

THREAD = "featlens-data"
LABELS = np.arange(40) % 2
PIXELS = np.random.default_rng(0).uniform(-1, 1, (40, 1, 4, 4)).astype(np.float32)


class Source:
    """Forty images, and notes on which thread read which of them."""

    shape, dtype, recipe = PIXELS.shape, PIXELS.dtype, b"pixels"

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.read_by = broken, []
        self.busy, self.leave = threading.Event(), threading.Event()
        self.leave.set()

    def read(self, ids):
        self.read_by.append((threading.current_thread().name, ids.tolist()))
        self.busy.set()
        assert self.leave.wait(60)
        if self.broken in ids:
            raise FeatlensError(f"image {self.broken} is damaged")
        return PIXELS[ids]

    def close(self) -> None:
        pass

    @property
    def rows(self) -> list[list[int]]:
        return [rows for _, rows in self.read_by]


@pytest.fixture
def source():
    found = Source()
    yield found
    found.leave.set()
    assert ended()


def lazy(source: Source) -> LazyData:
    images = LazyImages(source, np.arange(40), Pixels("source", source.dtype))
    return LazyData(SampleSet("source", images, np.arange(40), LABELS))


def held() -> TensorData:
    return TensorData(torch.from_numpy(PIXELS), torch.from_numpy(LABELS), "source")


def ended(patience: float = 60) -> bool:
    """Whether all threads that read ahead come to an end."""
    threads = [thread for thread in threading.enumerate() if thread.name == THREAD]
    for thread in threads:
        thread.join(patience)
    return not any(thread.is_alive() for thread in threads)


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def assert_right(data: LazyData, wanted: torch.Tensor) -> None:
    images, labels = data.batch(wanted)
    assert torch.equal(images, held().images[wanted]) and torch.equal(labels, held().labels[wanted])


# --- batches ------------------------------------------------------------------------------------------------


def test_what_was_planned_is_read_by_the_thread_and_all_else_at_once(source) -> None:
    data = lazy(source)
    data.ahead(rows(3, 1), rows(2, 2))
    assert_right(data, rows(2, 2))
    assert_right(data, rows(3, 1))
    assert_right(data, rows(1, 3))
    # Taken is taken.
    assert_right(data, rows(3, 1))
    assert [name == THREAD for name, _ in source.read_by] == [True, True, False, False]
    assert source.rows == [[3, 1], [2, 2], [1, 3], [3, 1]]
    # The same bytes, other rows; and row numbers that change after they were planned.
    wanted = rows(4)
    data.ahead(wanted)
    assert_right(data, torch.tensor([4, 0], dtype=torch.int32))
    wanted += 1
    assert_right(data, wanted)
    assert_right(data, rows(4))


def test_any_plans_give_the_same_batches(source) -> None:
    data, numbers = lazy(source), np.random.default_rng(1)
    orders = [torch.from_numpy(numbers.integers(0, 40, 3)) for _ in range(8)]
    for _ in range(200):
        if numbers.integers(2):
            data.ahead(*(orders[k] for k in numbers.integers(0, 8, numbers.integers(0, 4))))
        else:
            assert_right(data, orders[numbers.integers(8)])


def test_only_the_last_two_plans_wait(source) -> None:
    data = lazy(source)
    source.leave.clear()
    data.ahead(rows(0), rows(1))
    assert source.busy.wait(60)
    data.ahead(rows(2), rows(3))
    data.ahead(rows(4), rows(3))
    source.leave.set()
    assert_right(data, rows(4))
    assert ended() and source.rows == [[0], [2], [3], [4]]
    # What was dropped while it was read is dropped all the same.
    assert_right(data, rows(0))
    assert source.rows[4:] == [[0]] and source.read_by[4][0] != THREAD
    # A plan with nothing in it lets go of all that came before.
    data.ahead(), data.ahead()
    assert_right(data, rows(2))
    assert source.read_by[5][0] != THREAD


def test_what_goes_wrong_in_the_background_is_said_where_the_batch_is_asked_for() -> None:
    source = Source(broken=37)
    data = lazy(source)
    data.ahead(rows(1), rows(36, 37), rows(2))
    assert_right(data, rows(1))
    with pytest.raises(FeatlensError, match="image 37 is damaged"):
        data.batch(rows(36, 37))
    assert_right(data, rows(2))
    assert {name for name, _ in source.read_by} == {THREAD} and len(source.read_by) == 3
    # And what nobody asks for is nobody's error.
    data.ahead(rows(37))
    assert ended()


def test_places_share_what_was_read_and_copies_do_not(source) -> None:
    data = lazy(source)
    data.ahead(rows(5, 6))
    assert data.to("meta").batch(rows(5, 6))[0].device.type == "meta"
    assert [name for name, _ in source.read_by] == [THREAD]
    array = LazyData(SampleSet.from_arrays(PIXELS, LABELS))
    array.ahead(rows(7))
    for other in (copy.copy(array), copy.deepcopy(array), pickle.loads(pickle.dumps(array))):
        assert_right(other, rows(7, 8))
        other.ahead(rows(9))
        assert_right(other, rows(9))


def test_without_a_thread_all_is_read_when_it_is_asked_for(source, monkeypatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    data = lazy(source)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    data.ahead(rows(1), rows(2))
    assert_right(data, rows(2))
    monkeypatch.undo()
    data.ahead(rows(3))
    assert_right(data, rows(3))
    assert [name == THREAD for name, _ in source.read_by] == [False, True]


# --- the end ------------------------------------------------------------------------------------------------


def test_the_thread_ends_with_the_data(source, monkeypatch) -> None:
    monkeypatch.setattr(ahead, "PATIENCE", 0.01)
    data = lazy(source)
    source.leave.clear()
    data.ahead(*(rows(number) for number in range(9)))
    assert source.busy.wait(60)
    del data
    source.leave.set()
    assert ended() and source.rows == [[0]]


ALONE = """
import os, sys, threading, time
import numpy as np, torch
from featlens import SampleSet
from featlens.sources import LazyImages
from featlens.sources.pixels import Pixels
from featlens_trainers.data import LazyData

class Source:
    shape, dtype, recipe = (40, 1, 2, 2), np.dtype("float32"), b"x"
    def read(self, ids):
        busy.set()
        time.sleep(pause)
        return np.zeros((len(ids), 1, 2, 2), np.float32)
    def close(self):
        pass

busy, pause = threading.Event(), 0.01
data = LazyData(SampleSet("x", LazyImages(Source(), np.arange(40), Pixels("x", Source.dtype)), np.arange(40)))
rows = [torch.tensor([number]) for number in range(40)]
if sys.argv[1] == "fork":
    pause = 0.5
    data.ahead(*rows)
    busy.wait()
    child = os.fork()
    pause = 0.01
    # In the child there is no thread, and its locks may be held.
    assert data.batch(rows[0])[0].shape == (1, 1, 2, 2)
    data.ahead(rows[3])
    assert data.batch(rows[3])[0].shape == (1, 1, 2, 2)
    if child:
        assert os.waitpid(child, 0)[1] == 0
else:
    pause = float(sys.argv[1])
    data.ahead(*rows)
    busy.wait()
print("done")
"""


@pytest.mark.parametrize("how", ["fork", "0.01", "1000"])
def test_forks_go_on_and_no_read_keeps_the_interpreter(python: Callable, how: str) -> None:
    done = python(ALONE, how)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"done"}
    if how != "fork":
        assert done.stderr == ""


# --- loops --------------------------------------------------------------------------------------------------

NETWORK = UNetConfig(4, channels=8, channel_mult=(1,), attention_resolutions=())
BATCH, STEPS = 8, 7


def teacher(data: LazyData | TensorData, engine: Engine) -> Training:
    config = TeacherConfig(images=BATCH * STEPS, batch=BATCH, ramp_images=16)
    training = start_teacher(build_denoiser(NETWORK, 0.5, 0), config)
    list(train_teacher(training, data, config, seed=3, engine=engine))
    return training


def student(data: LazyData | TensorData, engine: Engine, **options) -> Training:
    config = DistillConfig(images=BATCH * STEPS, batch=BATCH, **options)
    training = started(config, NETWORK)
    list(distill(training, data, config, seed=3, engine=engine))
    return training


def student_of_three_updates(data: LazyData | TensorData, engine: Engine) -> Training:
    return student(data, engine, critic_updates=3, balanced=True)


def body(data: LazyData | TensorData, engine: Engine) -> Training:
    config = BodyConfig(images=BATCH * STEPS, batch=BATCH)
    training = start_body(build_denoiser(NETWORK, 0.5, 0), 2, config)
    list(train_body(training, data, config, seed=3, engine=engine))
    return training


def classifier(data: LazyData | TensorData, engine: Engine) -> Training:
    config = ClassifierConfig(images=BATCH * STEPS, batch=BATCH, features=4)
    torch.manual_seed(0)
    training = start_classifier(Classifier(1, 4, 2, config.features))
    list(train_classifier(training, data, config, seed=3))
    return training


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("train", [teacher, student, student_of_three_updates, body, classifier])
def test_loops_read_ahead_and_train_the_same(source, train: Callable, accumulate: int) -> None:
    engine = Engine(accumulate=accumulate)
    ours = train(lazy(source), engine).tensors()
    theirs = train(held(), engine).tensors()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    parts = 1 if train is classifier else accumulate
    steps = STEPS * (3 if train is student_of_three_updates else 1)
    # The first batch is read when it is asked for; nothing is read twice, and nothing beyond the end.
    assert [name for name, _ in source.read_by].count(THREAD) == parts * (steps - 1)
    assert len(source.read_by) == parts * steps
    assert sum(map(len, source.rows)) == BATCH * steps


def test_data_in_memory_and_the_end_are_left_alone(source) -> None:
    def refuse(images: int) -> torch.Tensor:
        raise AssertionError("no rows are needed")

    read_ahead(held(), refuse, 8, 16)
    read_ahead(lazy(source), refuse, 16, 16)
    data, order = lazy(source), Batches(40, 8, seed=1)
    read_ahead(data, order, 8, 16)
    assert_right(data, order(8))
    assert source.read_by == [(THREAD, order(8).tolist())]
