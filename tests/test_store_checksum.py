"""Checksums of chunks: those that HDF5 computes, whatever the size, type and content."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featlens.store.checksum import fletcher32, scratch


def of_hdf5(values):
    """Checksum of a chunk that HDF5 itself wrote."""
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        dataset = file.create_dataset("x", data=values, chunks=values.shape, fletcher32=True)
        return dataset.id.read_direct_chunk((0,) * values.ndim)[1][-4:]


@pytest.mark.parametrize("size", [1, 2, 1023, 1024, 1025, 2048, 5000, 65_536, 70_001, 300_000])
@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_sizes_around_every_edge(rng, size, dtype):
    values = rng.normal(size=size).astype(dtype)
    assert fletcher32(values) == of_hdf5(values)


@pytest.mark.parametrize("word", [0, 1, 0xFFFF, 0xFFFFFFFF, 0x00010000, 0x7FC00000])
@pytest.mark.parametrize("size", [1, 3, 1024, 200_000])
def test_sums_that_wrap_and_sums_of_nothing(word, size):
    values = np.full(size, word, dtype="<u4")
    assert fletcher32(values) == of_hdf5(values)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), st.integers(1, 200))
def test_any_words(words, times):
    values = np.array(words * times, dtype="<u4")
    assert fletcher32(values) == of_hdf5(values)


def test_memory_of_one_caller_may_be_used_again(rng):
    space = scratch()
    for size in (300_000, 7, 2048):
        values = rng.normal(size=(size, 2)).astype(np.float32)
        assert fletcher32(values, space) == of_hdf5(values)
