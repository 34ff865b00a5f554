"""The plan of an extraction says what the file will hold, and a warning comes before a large one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from featlens import SampleSet, extract
from featlens.errors import FeatlensWarning, UsageError
from featlens.extraction import plan_extraction
from featlens.files import human_bytes

SIGMAS = [0.1, 2.5]


@pytest.fixture
def samples():
    return SampleSet.load("digits", n=40)


@pytest.mark.parametrize(
    ("reduce", "dtype"), [("gap", "float32"), ("grid(2)", "float16"), ("flatten", "float32")]
)
def test_the_plan_is_what_the_file_becomes(tmp_path, make_denoiser, samples, reduce, dtype):
    plan = plan_extraction(make_denoiser(), samples, SIGMAS, "mid.*", reduce, batch=16, dtype=dtype)
    store = extract(make_denoiser(), samples, SIGMAS, "mid.*", tmp_path / "a.h5", reduce, 16, dtype=dtype)
    assert [site.name for site in plan.sites] == list(store.sites)
    assert [site.width for site in plan.sites] == [site.width for site in store.sites.values()]
    assert [site.kind for site in plan.sites] == ["Conv2d", "SiLU", "Dropout"]
    assert plan.sites[0].shape == (8, 4, 4)
    stored = sum(
        store.read(site.name, sigma).size * np.dtype(dtype).itemsize
        for site in plan.sites
        if not site.same_as
        for sigma in SIGMAS
    )
    assert plan.bytes == sum(site.bytes for site in plan.sites) == stored
    assert (plan.samples, plan.sigmas, plan.batch) == (40, tuple(SIGMAS), 16)


def test_the_time_is_that_of_all_batches(make_denoiser, samples):
    plan = plan_extraction(make_denoiser(), samples, SIGMAS, "mid.*", batch=16)
    assert plan.seconds_per_batch > 0
    assert plan.seconds == pytest.approx(plan.seconds_per_batch * 3 * 2)


def test_the_plan_reads_as_a_table(make_denoiser, samples):
    text = str(plan_extraction(make_denoiser(), samples, SIGMAS, "mid.*", batch=16))
    first, *rest = text.splitlines()
    assert first.split() == ["site", "class", "shape", "features", "bytes"]
    assert rest[0].split() == ["mid.0", "Conv2d", "8x4x4", "8", "2.56", "kB"]
    assert "3 sites x 2 sigmas x 40 samples" in text
    assert "s a batch of 16" in text


def test_a_wrong_request_has_no_plan(make_denoiser, samples):
    with pytest.raises(UsageError, match="numbers above 0"):
        plan_extraction(make_denoiser(), samples, [-1.0], "mid.*")


def test_a_large_file_is_warned_of_before_it_is_made(tmp_path, make_denoiser, samples):
    path = tmp_path / "a.h5"
    with pytest.warns(FeatlensWarning, match=r"will hold 2\.56 kB of features, more than 1 kB"):
        extract(make_denoiser(), samples, SIGMAS, "mid.0", path, warn_bytes=1000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        extract(make_denoiser(), samples, SIGMAS, "mid.0", tmp_path / "b.h5", warn_bytes=2560)
        extract(make_denoiser(), samples, SIGMAS, "mid.0", tmp_path / "c.h5", warn_bytes=None)
    assert not said


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (999_900, "1 MB"),
        (5.5e9, "5.5 GB"),
        (2e15, "2000.0 TB"),
    ],
)
def test_sizes_read_well(size, text):
    assert human_bytes(size) == text
