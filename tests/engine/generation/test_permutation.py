"""Keyed permutations and seeds: bijections for every size, without structure, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.generation.permutation import ROUNDS, hash32, keyed, mix, permute, seeds

WORD = (1 << 64) - 1
GOLDEN_ORDER = [1, 3, 6, 2, 7, 8, 0, 4, 5, 9]
GOLDEN_SEEDS = [5689943205648062844, 8541249449641068501, 1509270436250213074]
keys = st.integers(0, WORD)


def _slow_permute(position: int, size: int, key: int) -> int:
    """The same cipher in Python's integers, sample by sample, as the definition reads."""
    high = next(h for h in range(1, size + 1) if h * h >= size)
    low = -(-size // high)
    while True:
        left, right = divmod(position, low)
        for number in range(ROUNDS):
            half = right if number % 2 == 0 else left
            h = (half * 0x9E3779B97F4A7C15 + key + (number + 1) * 0xD1B54A32D192ED03) & WORD
            h = (h ^ h >> 32) * 0xBF58476D1CE4E5B9 & WORD
            h = (h ^ h >> 29) * 0x94D049BB133111EB & WORD
            if number % 2 == 0:
                left = (left + ((h >> 32) * high >> 32)) % high
            else:
                right = (right + ((h >> 32) * low >> 32)) % low
        position = left * low + right
        if position < size:
            return position


@given(size=st.integers(1, 600), key=keys)
def test_every_size_is_permuted_without_loss(size: int, key: int) -> None:
    out = permute(np.arange(size, dtype=np.uint64), size, np.array([key], np.uint64))
    assert sorted(out.tolist()) == list(range(size))


@given(size=st.integers(1, 5000), key=keys, data=st.data())
def test_arrays_agree_with_the_definition(size: int, key: int, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
    out = permute(np.array(positions, np.uint64), size, np.array([key], np.uint64))
    assert out.tolist() == [_slow_permute(p, size, key) for p in positions]


@given(rows=st.lists(st.tuples(st.integers(1, 10**6), keys, st.integers(0, 10**6)), min_size=1, max_size=20))
def test_sizes_and_keys_may_differ_by_row(rows: list[tuple[int, int, int]]) -> None:
    sizes, words, positions = (np.array(c, np.uint64) for c in zip(*rows, strict=True))
    positions %= sizes
    together = permute(positions, sizes, words)
    alone = [permute(positions[i : i + 1], int(sizes[i]), words[i : i + 1])[0] for i in range(len(rows))]
    assert together.tolist() == [int(a) for a in alone]


@pytest.mark.parametrize("size", [2, 3, 5, 10, 97])
def test_each_place_is_equally_likely(size: int) -> None:
    versions = 40_000
    key = keyed(7, "image", np.arange(versions, dtype=np.uint64))
    for position in {0, size // 2, size - 1}:
        out = permute(np.full(versions, position, np.uint64), size, key)
        assert scipy.stats.chisquare(np.bincount(out.astype(int), minlength=size)).pvalue > 1e-4


@pytest.mark.parametrize("size", [5, 12, 100])
def test_neighbours_are_independent(size: int) -> None:
    versions = 40_000
    key = keyed(11, "image", np.arange(versions, dtype=np.uint64))
    first, second = (permute(np.full(versions, p, np.uint64), size, key).astype(int) for p in (0, 1))
    gap = np.bincount((second - first) % size, minlength=size)
    assert gap[0] == 0
    assert scipy.stats.chisquare(gap[1:]).pvalue > 1e-4


def test_large_domains_are_injective_and_bounded() -> None:
    size = 10**12
    out = permute(np.arange(10**9, 10**9 + 10**6, dtype=np.uint64), size, keyed(3, "image"))
    assert int(out.max()) < size
    assert len(np.unique(out)) == 10**6


def test_hash32_fills_32_bits_evenly() -> None:
    out = hash32(np.arange(200_000, dtype=np.uint64), keyed(1, "token"))
    assert int(out.max()) < 1 << 32
    assert scipy.stats.chisquare(np.bincount((out >> np.uint64(26)).astype(int), minlength=64)).pvalue > 1e-4


def test_mix_is_splitmix64() -> None:
    """First outputs of splitmix64 seeded with 1234567 (the reference C program by Vigna, as published with xoshiro)."""
    state = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(state).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@settings(max_examples=30)
@given(key=keys, start=st.integers(0, 10**12), attempt=st.integers(1, 100))
def test_seeds_differ_between_indices_down_to_the_bits_that_torch_uses(key: int, start: int, attempt: int) -> None:
    out = seeds(np.arange(start, start + 20_000, dtype=np.uint64), attempt, key)
    assert int(out.max()) < 1 << 63
    assert len(np.unique(out & np.uint64(0xFFFFFFFF))) == 20_000


@given(key=keys, index=st.integers(0, 10**12))
def test_seeds_differ_between_attempts(key: int, index: int) -> None:
    word = np.array([index], np.uint64)
    assert len({int(seeds(word, attempt, key)[0]) & 0xFFFFFFFF for attempt in range(1, 101)}) == 100


@given(key=keys, index=st.integers(0, 2**40), hops=st.integers(1, 200))
def test_seeds_stay_unique_where_the_lower_32_bits_come_round_again(key: int, index: int, hops: int) -> None:
    far = np.array([index, index + (hops << 32)], np.uint64)
    first, second = seeds(far, 1, key).tolist()
    assert first != second
    assert first & 0xFFFFFFFF == second & 0xFFFFFFFF


def test_noise_of_neighbouring_samples_is_uncorrelated() -> None:
    out = seeds(np.arange(64, dtype=np.uint64), 1, 99)
    noise = torch.stack([torch.randn(4096, generator=torch.Generator().manual_seed(s)) for s in out.tolist()])
    correlation = torch.corrcoef(noise) - torch.eye(64)
    assert float(correlation.abs().max()) < 0.09  # 5.7 standard errors of 1 / sqrt(4096)


def test_golden_values_never_change() -> None:
    """A changed value here means that old runs can no longer be resumed."""
    assert permute(np.arange(10, dtype=np.uint64), 10, keyed(42, "image")).tolist() == GOLDEN_ORDER
    assert seeds(np.array([0, 1, 10**9], np.uint64), 2, 42).tolist() == GOLDEN_SEEDS
