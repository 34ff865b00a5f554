"""Peak memory of an extraction and of a reading in blocks, for n growing ten times.

    python -m tests.benchmarks.bench_memory [--most 250000]

Every run is a process of its own; the peak resident memory beyond what the process held before the
work is told. The images lie in a file and are read as they are needed (images of less than 64 MiB are held).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CHILD = """
import sys
import torch
from torch import nn
import featlens as fl

torch.set_num_threads(1)
what, n, images, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        half = {"stride": 2, "padding": 1}
        self.enc = nn.Sequential(nn.Conv2d(3, 16, 3, **half), nn.SiLU(), nn.Conv2d(16, 16, 3, **half))
        self.out = nn.ConvTranspose2d(16, 3, 4, stride=4)

    def forward(self, x, c_noise, labels):
        return self.out(self.enc(x))

def peak():
    # Not getrusage: its peak begins with that of the parent.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

torch.manual_seed(0)
model = fl.EDMDenoiser(Net(), (3, 32, 32))
warm = fl.SampleSet.load(images, n=600)
fl.extract(model, warm, [0.5], "enc.*", out + ".warm", reduce="grid(4)", batch=64).close()
before = peak()
if what == "extract":
    samples = fl.SampleSet.load(images, n=n)
    fl.extract(model, samples, [0.5], "enc.*", out, reduce="grid(4)", batch=64).close()
else:
    with fl.FeatureStore(out) as store:
        for site in store.sites:
            for rows, block in store.blocks(site, 0.5):
                block.sum()
print(peak() - before)
"""


def measured(what: str, n: int, images: Path, out: Path) -> float:
    """MiB at the peak beyond those of a small run before it."""
    words = [sys.executable, "-c", CHILD, what, str(n), str(images), str(out)]
    return float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=250_000, help="images of the largest run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npy"
        held = np.lib.format.open_memmap(images, mode="w+", dtype=np.uint8, shape=(args.most, 3, 32, 32))
        for start in range(0, args.most, 1000):
            held[start : start + 1000] = np.random.default_rng(start).integers(
                0, 256, held[start : start + 1000].shape, dtype=np.uint8
            )
        held.flush()
        print("n, file, peak of extract and of reading in blocks beyond a small run's")
        for n in (args.most // 10, args.most):
            out = Path(folder) / f"{n}.h5"
            extracting = measured("extract", n, images, out)
            reading = measured("read", n, images, out)
            size = out.stat().st_size / 2**20
            print(f"  {n:>9,}  {size:9.1f} MiB  {extracting:7.1f} MiB  {reading:7.1f} MiB")
            out.unlink()


if __name__ == "__main__":
    main()
