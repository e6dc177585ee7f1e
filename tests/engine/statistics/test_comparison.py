"""Paired comparisons against scipy, textbook values and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.statistics.comparison import compare, holm, pairs_needed
from engine.statistics.nested import NO_VERDICT


def test_differences_are_paired() -> None:
    base = [0.90, 0.95, 0.85, 0.92, 0.88]
    values = {
        "base": base,
        "better": [b + d for b, d in zip(base, (0.010, 0.012, 0.009, 0.011, 0.010), strict=True)],
        "same": base,
    }
    better, same = compare(values, "base")
    expected = stats.ttest_rel(values["better"], base)
    interval = expected.confidence_interval(0.95)
    assert better.p == pytest.approx(expected.pvalue)
    assert better.interval == pytest.approx([interval.low, interval.high])
    assert (better.finding, better.pairs, better.difference) == ("higher", 5, pytest.approx(0.0104))
    assert (same.finding, same.p, same.needed) == ("no difference found", None, None)


def test_one_pair_says_nothing() -> None:
    only = compare({"a": [0.5], "b": [0.9]}, "a")[0]
    assert (only.finding, only.p, only.interval, only.needed) == (NO_VERDICT, None, [None, None], None)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )


def test_many_arms_of_noise_are_rarely_called_different() -> None:
    random = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        values = {name: random.normal(size=6).tolist() for name in ("base", "a", "b", "c", "d")}
        found += any(row.finding != "no difference found" for row in compare(values, "base"))
    assert found <= 20  # 5 % of families; correlated through the shared reference


def test_the_needed_pairs_reach_the_power() -> None:
    assert pairs_needed(0.5, 1.0) == 34  # G*Power: two-sided, d = 0.5, power 0.8
    n = pairs_needed(1.0, 1.0)
    assert n is not None
    random = np.random.default_rng(1)
    p = stats.ttest_1samp(random.normal(1.0, 1.0, size=(4000, n)), 0.0, axis=1).pvalue
    assert float((p < 0.05).mean()) == pytest.approx(0.8, abs=0.06)
    assert pairs_needed(1e-9, 1.0) is None
