"""Makes features-v1.h5, a feature file of format version 1 with all that the format allows.

    python tests/golden/make_features_v1.py

The file is made once and stays as it is: tests/test_format_v1.py reads it with every later featlens.
features-v1-first.h5 was made in the same way by the first featlens that wrote version 1, whose HDF5 structure
was that of HDF5 1.6; it has no shared features, no float16 and no classes of modules.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featlens.store import FeatureWriter, SiteInfo

SITES = [
    SiteInfo("enc.8x8_block0", 0, 12, channels=12, resolution=8, reducer="gap", kind="UNetBlock"),
    SiteInfo("enc.8x8_block0.norm0", 1, 5, channels=5, reducer="project(5, 3)", kind="GroupNorm"),
    SiteInfo(
        "dec#0", 2, 12, channels=12, resolution=8, reducer="gap", kind="Identity", same_as="enc.8x8_block0"
    ),
    SiteInfo("größe", 3, 1, reducer="gap"),
]
SIGMAS = [0.05, 0.5, 2.5]
SAMPLES = 70
MANIFEST = {
    "model": "runs/digits/teacher",
    "weights_digest": "0f1e2d",
    "reducer": "gap",
    "sample_digest": "a1b2c3",
    "noise_seed": 0,
    "sigmas": SIGMAS,
    "dtype": "float16",
    "versions": {"torch": "2.4.0"},
}


def features(number: int, index: int, width: int) -> np.ndarray:
    """(N, D) numbers that float16 holds exactly, by position of the site and of the sigma."""
    rows = np.arange(SAMPLES, dtype=np.float32)[:, None]
    return (rows - 8 * np.arange(width, dtype=np.float32) + 100 * number + 0.5 * index).astype(np.float32)


def main() -> None:
    """Write the file; the last noise level stays unfinished after 32 rows."""
    path = Path(__file__).with_name("features-v1.h5")
    ids, labels = np.arange(SAMPLES) * 3 + 1, np.arange(SAMPLES) % 10
    with FeatureWriter.create(path, SITES, SIGMAS, ids, MANIFEST, labels, "float16", block=32) as writer:
        for index in range(len(SIGMAS)):
            rows = SAMPLES if index < 2 else 32
            writer.append(
                index,
                {
                    site.name: features(number, index, site.width)[:rows]
                    for number, site in enumerate(SITES)
                    if not site.same_as
                },
            )


if __name__ == "__main__":
    main()
