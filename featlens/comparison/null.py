"""Null levels: the same values under permutations of the samples, thousands at the price of a few.

For matrices K and L of two sites, what a permutation pi changes is sum_ij K_ij L_pi(i)pi(j) (and, where the
formula has one, a sum over single samples). For the n - 1 cyclic shifts pi(i) = i + s of an order of the
samples this is a circular correlation along every diagonal, so Fourier transforms along the diagonals give
all shifts at once:

    sum_d irfft( sum_d conj(F K_{i, i+d}) F L_{i, i+d} ).

The order is random, and as many orders are drawn as the wanted number of permutations needs. The shifts
of one order form a group, so the test is exact: under exchangeability each shift, the identity among
them, is equally likely to give the largest value (Hemerik and Goeman 2018, arXiv 1411.7565, theorem 1).
With several orders that is not proven, and was found to hold in simulations (docs/notes/uncertainty.md).
All sites share the permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.comparison.device import open_device
from featlens.comparison.entries import entries_of
from featlens.comparison.forms import Form, ratio, similarity
from featlens.comparison.jackknife import Sums, finish
from featlens.comparison.request import Handle
from featlens.comparison.rows import Rows
from featlens.comparison.tiles import Moments, Pair

__all__ = ["orders_for", "shift_spectra", "shifts_of_forms", "shifts_of_matrices"]

Floats = NDArray[np.float64]
# Fills (t, D) with entries i0..i1 of diagonals first..last: matrix index, i0, i1, first, last, out.
Diagonals = Callable[[int, int, int, int, int, NDArray[Any]], None]


def orders_for(n: int, permutations: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Random orders of n samples whose cyclic shifts are at least so many permutations."""
    if n < 2 or permutations < 1:
        return []
    return [rng.permutation(n) for _ in range(-(-permutations // (n - 1)))]


def shift_spectra(
    diagonals: Diagonals,
    n: int,
    count: int,
    pairs: Sequence[Pair],
    dtype: Any,
    memory: float,
    symmetric: bool = True,
) -> list[NDArray[Any]]:
    """For each pair of groups (frequencies, A, B): transform over s of sum_(i != j) K_ij L_(i+s)(j+s).

    Parameters
    ----------
    diagonals
        Where the entries come from.
    n, count
        Number of samples and of matrices.
    pairs
        Groups of matrices.
    dtype
        Of the entries.
    memory
        Bytes for the entries of some diagonals of all matrices.
    symmetric
        Whether all matrices are symmetric, so that half of the diagonals say all.
    """
    from scipy.fft import rfft

    frequencies = n // 2 + 1
    kind = np.complex64 if dtype == np.float32 else np.complex128
    last = n // 2 if symmetric else n - 1
    # Diagonals are looked at in blocks of one size; rows in pieces, unless all diagonals fit at once.
    each = n * np.dtype(dtype).itemsize * (count + 3)
    blocks = -(-last // max(8, min(last, int(memory // each))))
    width = -(-last // blocks)
    spectra = [
        np.zeros((frequencies, a.stop - a.start, b.stop - b.start), dtype=np.complex128) for a, b in pairs
    ]
    rows = n if blocks == 1 else min(n, max(64, width // 8))
    for first in range(1, last + 1, width):
        stop = min(first + width, last + 1)
        stack = np.empty((frequencies, count, stop - first), dtype=kind)
        entries = np.empty((n, stop - first), dtype=dtype)
        for index in range(count):
            for start in range(0, n, rows):
                end = min(start + rows, n)
                diagonals(index, start, end, first, stop, entries[start:end])
            stack[:, index] = rfft(entries, axis=0)
        if symmetric and stop == last + 1 and n % 2 == 0:
            # The middle diagonal holds every pair twice, the others once. Both factors carry a root.
            stack[:, :, -1] *= 0.5**0.5
        for spectrum, (a, b) in zip(spectra, pairs, strict=True):
            for low in range(0, frequencies, 32):
                some = stack[low : low + 32]
                spectrum[low : low + 32] += some[:, a].conj() @ some[:, b].transpose(0, 2, 1)
    factor = 2 if symmetric else 1
    return [factor * spectrum for spectrum in spectra]


def _shifts(spectrum: NDArray[Any], n: int) -> Floats:
    """(shifts, B) from (frequencies, B)."""
    from scipy.fft import irfft

    return np.asarray(irfft(spectrum, n=n, axis=0))


def _correlate(a: Floats, b: Floats) -> Floats:
    """(shifts, B): sum_i a_i b_(i+s) of a (n,) and rows b (B, n)."""
    from scipy.fft import rfft

    return _shifts(rfft(a).conj()[:, None] * rfft(b, axis=1).T, len(a))


def shifts_of_forms(
    handles: Sequence[Handle],
    pairs: Sequence[Pair],
    forms: Sequence[Form],
    widths: Sequence[Sequence[float]],
    order: NDArray[np.int64],
    dtype: str,
    memory: float,
) -> list[list[NDArray[Any]]]:
    """For each form and pair (n - 1, A, B) float32: values under the cyclic shifts of one order.

    ``order`` holds the samples to use, all or some. ``widths`` are the bandwidths of each form's kernel by
    site, in units of the features.
    """
    n = len(order)
    rows = Rows(handles, n, n, dtype, open_device("cpu"), float("inf"), order)
    out = []
    for form, scales in zip(forms, widths, strict=True):
        source = _KernelDiagonals(rows, form, scales)
        products = shift_spectra(source, n, len(handles), pairs, np.dtype(dtype).type, memory)
        out.append(_values(source, products, pairs))
    return out


def shifts_of_matrices(
    matrices: Sequence[NDArray[Any]], pairs: Sequence[Pair], order: NDArray[np.int64], memory: float
) -> list[NDArray[Any]]:
    """For each pair (n - 1, A, B) float32: sums of products of prepared matrices under an order's shifts."""
    n = len(order)
    symmetric = all(np.array_equal(matrix, matrix.T) for matrix in matrices)

    def entries(index: int, start: int, stop: int, first: int, last: int, out: NDArray[Any]) -> None:
        rows = np.arange(start, stop)[:, None]
        out[:] = matrices[index][order[rows], order[(rows + np.arange(first, last)[None, :]) % n]]

    products = shift_spectra(entries, n, len(matrices), pairs, np.float32, memory, symmetric)
    diagonals = np.stack([matrix.diagonal()[order] for matrix in matrices]).astype(np.float64)
    out = []
    for spectrum, (a, b) in zip(products, pairs, strict=True):
        found = np.empty((n - 1, *spectrum.shape[1:]), dtype=np.float32)
        for index, diagonal in enumerate(diagonals[a]):
            found[:, index] = (_shifts(spectrum[:, index], n) + _correlate(diagonal, diagonals[b]))[1:]
        out.append(found)
    return out


class _KernelDiagonals:
    """Diagonals of kernel matrices, made from features when they are asked for."""

    def __init__(self, rows: Rows, form: Form, widths: Sequence[float]) -> None:
        self.rows, self.form, self.n = rows, form, rows.n
        self.features = [rows.block(index, 0) for index in range(len(rows.handles))]
        self.norms = rows.norms.astype(rows.dtype)
        self.entries = [
            entries_of(form.kernel, width / scale, norms)
            for width, scale, norms in zip(widths, rows.scales, rows.norms, strict=True)
        ]
        self.totals = np.zeros((len(self.features), self.n))
        self.squares = np.zeros(len(self.features))

    def __call__(self, index: int, start: int, stop: int, first: int, last: int, out: NDArray[Any]) -> None:
        n, linear = self.n, self.form.kernel.kind == "linear"
        if stop - start == n:
            # numpy makes half of a symmetric product.
            gram = self._tile(index, 0, n, 0, n)
            if not linear:
                self.totals[index] = gram.sum(axis=1) - gram.diagonal()
            gram = np.concatenate([gram[:, first:], gram[:, :last]], axis=1)
        else:
            gram = self._tile(index, start, stop, start + first, stop - 1 + last)
        row, step = gram.strides
        entries = np.lib.stride_tricks.as_strided(
            gram, (stop - start, last - first), (row + step, step), writeable=False
        )
        out[:] = entries
        middle = n % 2 == 0 and last - 1 == n // 2
        self.squares[index] += 2 * float(np.einsum("ij,ij->", out, out))
        if middle:
            self.squares[index] -= float(out[:, -1] @ out[:, -1])
        if not linear and stop - start < n:
            self._add(index, start, stop, first, entries, middle)

    def _tile(self, index: int, start: int, stop: int, low: int, high: int) -> NDArray[Any]:
        """Rows start..stop and columns low..high of the kernel matrix repeated over and over."""
        x, norms = self.features[index], self.norms[index]
        gram = x[start:stop] @ _wrapped(x, low, high).T
        right = _wrapped(norms, low, high)
        return np.asarray(self.entries[index].tile(gram, norms[start:stop, None], right[None, :], np))

    def _add(
        self, index: int, start: int, stop: int, first: int, entries: NDArray[Any], middle: bool
    ) -> None:
        """Row sums: every entry counts in its row and its column, those of the middle diagonal once."""
        weights = np.ones(entries.shape[1])
        weights[-1] = 0.5 if middle else 1.0
        weighted = entries * weights
        self.totals[index, start:stop] += weighted.sum(axis=1)
        columns = np.arange(entries.shape[1])[None, :] + first + np.arange(start, stop)[:, None]
        self.totals[index] += np.bincount((columns % self.n).ravel(), weighted.ravel(), minlength=self.n)

    def moments(self) -> Moments:
        """Sums over pairs, known once all diagonals were made."""
        noise = np.array([each.noise(self.rows.dtype) for each in self.entries])
        if self.form.kernel.kind == "linear":
            return Moments(own=self.squares, rows=-self.rows.norms, diagonal=self.rows.norms, noise=noise)
        diagonal = np.array([each.diagonal for each in self.entries])[:, None] + np.zeros_like(self.totals)
        return Moments(own=self.squares, rows=self.totals, diagonal=diagonal, noise=noise)


def _wrapped(x: NDArray[Any], low: int, high: int) -> NDArray[Any]:
    """Rows low..high of x repeated over and over."""
    n = len(x)
    if high <= n:
        return x[low:high]
    if low >= n:
        return x[low - n : high - n] if high <= 2 * n else x[np.arange(low, high) % n]
    return x[np.arange(low, high) % n]


def _values(
    source: _KernelDiagonals, products: Sequence[NDArray[Any]], pairs: Sequence[Pair]
) -> list[NDArray[Any]]:
    form, n = source.form, source.n
    sums = Sums(form, source.moments(), source.rows.dtype)
    own = sums.self_similarity()
    out = []
    for (a, b), spectrum in zip(pairs, products, strict=True):
        found = np.empty((n - 1, *spectrum.shape[1:]), dtype=np.float32)
        # Site by site, because all shifts of all cells in float64 may not fit into memory.
        for index, site in enumerate(range(a.start, a.stop)):
            value = similarity(
                form.formula,
                n,
                _shifts(spectrum[:, index], n),
                sums.totals[site] * sums.totals[b],
                _correlate(sums.rows[site], sums.rows[b]),
                _correlate(sums.own[site], sums.own[b]),
            )
            found[:, index] = finish(form, ratio(value, own[site], own[b]))[1:]
        out.append(found)
    return out
