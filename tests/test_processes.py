"""Several processes write one file, equal to that of one process."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from featlens import FeatureStore, SampleSet, extract

MODEL = """
import os, pathlib, time, torch
from torch import nn
from featlens import EDMDenoiser

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.SiLU())
        self.out = nn.Conv2d(6, 1, 1)
        self.pause = float(os.environ.get('PAUSE', 0))

    def forward(self, x, c_noise, labels):
        time.sleep(self.pause)
        return self.out(self.enc(x) + c_noise[:, None, None, None])

def make():
    told = [os.environ.get(name, '-') for name in ('RANK', 'WORLD_SIZE')]
    pathlib.Path(__file__).with_name('process {} of {}'.format(*told)).touch()
    torch.manual_seed(0)
    return EDMDenoiser(Net(), (1, 8, 8))
"""
EXTRACT = ["--sites", "enc.*,out", "--sigmas", "0.5,2.5", "-n", "590", "--batch", "64"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# --multi_gpu starts several processes also where there is no GPU; --cpu starts one, whatever it is told.
ACCELERATE = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip


@pytest.fixture
def start(tmp_path):
    """Starts ``featlens extract``, behind a launcher or as one of several processes told who they are."""
    (tmp_path / "models.py").write_text(MODEL)

    def begin(*arguments, launcher=(), **told):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        words = [*launcher, "-m", "featlens", "extract", "python:models:make", *map(str, arguments)]
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**env, **told},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


def ended(*processes):
    """Exit code, stdout and stderr of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


def pair(start, *arguments, **more):
    """Two processes on this machine, as a cluster's array job would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(*arguments, **more, RANK=str(rank), **told) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The file of one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "models.py").write_text(MODEL)
    words = [sys.executable, "-m", "featlens", "extract", "python:models:make", "-o", "alone.h5", *EXTRACT]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(words, cwd=folder, env=env, check=True, capture_output=True)
    return folder / "alone.h5"


def everything(path: Path) -> dict[str, object]:
    """Every data set and attribute of a file."""
    found: dict[str, object] = {}

    def visit(name, item):
        attrs = {key: value for key, value in item.attrs.items() if "LIST" not in key}
        found[name] = (str(attrs), item[()].tobytes() if isinstance(item, h5py.Dataset) else None)

    with h5py.File(path) as file:
        found["/"] = str(sorted((key, str(value)) for key, value in file.attrs.items()))
        file.visititems(visit)
    return found


def processes(folder: Path) -> list[str]:
    """Which processes have made the model."""
    return sorted(path.name for path in folder.glob("process *"))


def test_torchrun_makes_the_file_of_one_process(tmp_path, start, alone):
    ((code, out, err),) = ended(start("-o", "both.h5", *EXTRACT, launcher=TORCHRUN))
    assert code == 0, err
    assert processes(tmp_path) == ["process 0 of 2", "process 1 of 2"]
    assert out.splitlines() == ["both.h5"]
    assert everything(tmp_path / "both.h5") == everything(alone)
    assert [path.name for path in tmp_path.glob("*.h5")] == ["both.h5"]


@pytest.mark.slow
def test_accelerate_launch_is_understood_too(tmp_path, start, alone):
    pytest.importorskip("accelerate")
    ((code, _, err),) = ended(start("-o", "both.h5", *EXTRACT, launcher=ACCELERATE))
    assert code == 0, err
    assert processes(tmp_path) == ["process 0 of 2", "process 1 of 2"]
    assert everything(tmp_path / "both.h5") == everything(alone)


def test_killed_processes_are_continued_from_their_shards(tmp_path, start, alone):
    shards = [tmp_path / f"both.shard-{index}-of-2.h5" for index in range(2)]
    running = pair(start, "-o", "both.h5", *EXTRACT, PAUSE="0.5")
    deadline = time.monotonic() + 60
    while not all(shard.exists() for shard in shards) and time.monotonic() < deadline:
        time.sleep(0.02)
    running[0].send_signal(signal.SIGTERM)
    running[1].send_signal(signal.SIGKILL)
    said = ended(*running)
    assert [code for code, _, _ in said] == [1, -signal.SIGKILL], said
    assert "interrupted; run the same command again to continue" in said[0][2]
    assert not (tmp_path / "both.h5").exists()
    for shard in shards:
        with FeatureStore(shard) as store:
            assert store.rows_done.sum() < len(store) * 2
    again = ended(*pair(start, "-o", "both.h5", *EXTRACT))
    assert [code for code, _, _ in again] == [0, 0], again
    with FeatureStore(alone) as one, FeatureStore(tmp_path / "both.h5") as two:
        for site in one.sites:
            for sigma in one.sigmas:
                assert np.array_equal(one.read(site, sigma), two.read(site, sigma))


def test_a_failure_is_said_in_one_line_by_every_process(tmp_path, start):
    for code, out, err in ended(*pair(start, "-o", "both.h5", "--sites", "nowhere", "--sigmas", "0.5")):
        assert (code, out) == (2, "")
        assert err.startswith("featlens extract: no site 'nowhere'") and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.h5"))


def test_a_half_told_process_says_what_is_missing(start):
    ((code, _, err),) = ended(start("-o", "a.h5", *EXTRACT, WORLD_SIZE="2", RANK="0"))
    assert code == 2
    assert "WORLD_SIZE is set, but MASTER_ADDR, MASTER_PORT is not" in err


HOST = """
import sys
rank, folder = int(sys.argv[1]), sys.argv[2]
sys.path.insert(0, folder)
import torch.distributed as dist
import featlens as fl, models

dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

def work(name, n, told=None):
    samples = fl.SampleSet.load("digits", n=n)
    options = {"batch": 64, "distributed": True, "progress": told}
    with fl.extract(models.make(), samples, [0.5], "out", f"{folder}/{name}.h5", **options) as store:
        print(len(store), store.complete, dist.is_initialized())

def spoil(done, total):
    if rank == 1:
        raise RuntimeError("spoilt")

work("fine", 590)
work("fine", 590)
work("few", 3)
try:
    work("spoilt", 590, spoil)
except (fl.FeatlensError, RuntimeError) as error:
    print(type(error).__name__, error)
"""


def test_a_host_project_with_its_own_process_group(tmp_path, python, monkeypatch):
    """Also a file that is there already, fewer rows than processes, and a process that fails alone."""
    (tmp_path / "models.py").write_text(MODEL)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: python(HOST, rank, tmp_path), range(2))
    good = ["590 True True", "590 True True", "3 True True"]
    assert first.stdout.splitlines()[:3] == second.stdout.splitlines()[:3] == good, first.stderr
    assert first.stdout.splitlines()[3].startswith("FeatlensError process 1 of 2 failed"), first.stderr
    assert second.stdout.splitlines()[3:] == ["RuntimeError spoilt"]
    assert not (tmp_path / "spoilt.h5").exists()
    monkeypatch.syspath_prepend(tmp_path)
    models = importlib.import_module("models")
    for name, n in (("fine", 590), ("few", 3)):
        one = tmp_path / f"{name}-alone.h5"
        extract(models.make(), SampleSet.load("digits", n=n), [0.5], "out", one, batch=64).close()
        assert everything(tmp_path / f"{name}.h5") == everything(one)
    sys.modules.pop("models")
