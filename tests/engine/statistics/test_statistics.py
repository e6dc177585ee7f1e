"""Intervals against scipy, against closed forms, and by simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from engine.statistics.intervals import Interval, binomial_error, mean_interval, ratio_interval, standard_deviation


@pytest.mark.parametrize("n", [2, 3, 5, 22])
def test_mean_interval_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(0.9, 0.02, n)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(values.tolist())
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-12)


def test_three_values_by_hand() -> None:
    found = mean_interval([0.96, 0.97, 0.98])
    half = 4.302652729911275 * 0.01 / math.sqrt(3)  # t(2, .975) from a table
    assert found.low == pytest.approx(0.97 - half)
    assert found.high == pytest.approx(0.97 + half)


def test_one_value_gives_no_interval() -> None:
    assert mean_interval([0.9]) == ratio_interval([0.9], [0.8]) == Interval(None, None)
    assert standard_deviation([0.9]) is None


@pytest.mark.parametrize("n", [3, 5, 10])
def test_ratio_bounds_are_where_the_paired_t_test_turns(n: int) -> None:
    rng = np.random.default_rng(n)
    shared = rng.normal(0, 0.02, n)
    real, synthetic = 0.96 + shared + rng.normal(0, 0.01, n), 0.93 + shared + rng.normal(0, 0.01, n)
    found = ratio_interval(synthetic.tolist(), real.tolist())
    assert found.low is not None
    assert found.high is not None
    for bound in (found.low, found.high):
        assert stats.ttest_1samp(synthetic - bound * real, 0).pvalue == pytest.approx(0.05, abs=1e-6)
    assert found.low < synthetic.mean() / real.mean() < found.high


def test_pairing_narrows_the_ratio() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 0.03, 8)
    real, synthetic = 0.9 + shared, 0.88 + shared + rng.normal(0, 0.002, 8)
    paired, shuffled = ratio_interval(synthetic, real), ratio_interval(np.roll(synthetic, 3), real)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_ratio_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    trials, n, covered = 4000, 3, 0
    for _ in range(trials):
        shared = rng.normal(0, 0.01, n)
        real, synthetic = 0.96 + shared + rng.normal(0, 0.01, n), 0.92 + shared + rng.normal(0, 0.015, n)
        found = ratio_interval(synthetic, real)
        covered += found.low <= 0.92 / 0.96 <= found.high
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_a_denominator_that_may_be_zero_gives_no_bounds() -> None:
    assert ratio_interval([1.0, 1.1, 0.9], [0.1, -0.1, 0.05]) == Interval(None, None)


def test_unpaired_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        ratio_interval([1.0, 2.0], [1.0])


def test_values_without_spread_give_a_point() -> None:
    assert ratio_interval([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]).as_list() == [0.5, 0.5]


def test_clipping_keeps_what_can_be() -> None:
    assert Interval(0.97, 1.02).clipped(0, 1) == Interval(0.97, 1)
    assert Interval(None, None).clipped(0, 1) == Interval(None, None)


def test_binomial_error_is_that_of_counts() -> None:
    assert binomial_error(0.88, 899) == pytest.approx(stats.binom(899, 0.88).std() / 899)
    assert binomial_error(1.0, 10) == 0
