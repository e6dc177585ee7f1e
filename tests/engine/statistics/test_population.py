"""Intervals over seeds and images against scipy, McNemar's test and simulation with known truth; nested seeds by
counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.statistics.comparison import compare, pairs_needed
from engine.statistics.nested import FRESH, NO_VERDICT, generator_seeds, judge_seeds, judge_spread
from engine.statistics.population import pooled


def test_judge_seeds_are_shared_by_no_two_generators_and_fresh_ones_by_no_selection() -> None:
    selection, fresh = generator_seeds(7, FRESH), generator_seeds(7, FRESH, fresh=True)
    assert not set(selection) & set(fresh)
    every = [seed for generator in [*selection[:50], *fresh[:50]] for seed in judge_seeds(generator, 20)]
    assert len(set(every)) == 100 * 20
    assert judge_seeds(7, 3) == judge_seeds(7, 5)[:3]
    assert all(0 <= seed < 2**63 for seed in every)


def test_the_spread_over_judges_is_within_generators() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 1)) * 10 + rng.normal(size=(4, 500))
    assert judge_spread(table.tolist()) == pytest.approx(1, rel=0.05)
    assert judge_spread([[0.5], [0.6]]) is None
    assert judge_spread([[0.1, 0.4, 0.5]]) == pytest.approx(np.std([0.1, 0.4, 0.5], ddof=1))


def test_where_images_are_all_alike_it_is_the_t_interval_over_seeds() -> None:
    rows = np.random.default_rng(1).normal(size=6)
    found = pooled(np.repeat(rows[:, None], 40, axis=1))
    assert found is not None
    assert found.interval().as_list() == pytest.approx(list(stats.t.interval(0.95, 5, rows.mean(), stats.sem(rows))))
    assert found.p == pytest.approx(stats.ttest_1samp(rows, 0).pvalue)


def test_where_seeds_are_all_alike_it_is_mcnemars_test() -> None:
    """Two fixed classifiers: the squared statistic is McNemar's, but for N - 1 in place of N and the mean in the
    variance."""
    rng = np.random.default_rng(2)
    first, second = rng.random(3000) < 0.80, rng.random(3000) < 0.83
    found = pooled(np.tile(first.astype(float) - second, (4, 1)))
    assert found is not None
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    assert (found.mean / found.error) ** 2 == pytest.approx((b - c) ** 2 / (b + c), rel=0.01)


def _studies(count: int, g: int, n: int, seeds: float, images: float, both: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    shape = (count, g, n)
    return (
        seeds * rng.normal(size=(count, g, 1)) + images * rng.normal(size=(count, 1, n)) + both * rng.normal(size=shape)
    )


@pytest.mark.parametrize(("seeds", "images", "both"), [(0.1, 1, 1), (0.1, 0, 1), (0.01, 1, 1), (1, 0.1, 1), (0, 0, 1)])
def test_the_interval_holds_the_truth_in_95_percent_and_the_one_over_seeds_does_not(
    seeds: float, images: float, both: float
) -> None:
    hits, narrow = 0, 0
    for values in _studies(1000, 5, 100, seeds, images, both):
        found = pooled(values)
        assert found is not None
        low, high = found.interval().as_list()
        hits += low <= 0 <= high
        rows = values.mean(1)
        narrow += abs(rows.mean()) <= stats.t.ppf(0.975, 4) * stats.sem(rows)
    assert 0.93 <= hits / 1000 <= 0.985
    if images >= 1:
        assert narrow / 1000 < 0.93


def test_comparisons_speak_of_the_images_where_their_answers_are_known() -> None:
    rng = np.random.default_rng(5)
    right = {name: (rng.random((4, 60)) < 0.8).astype(float) for name in ("base", "a", "b")}
    values = {name: own.mean(1).tolist() for name, own in right.items()}
    for found in compare(values, "base", right=right):
        expected = pooled(right[found.arm] - right["base"])
        assert expected is not None
        assert found.population == expected.interval().as_list()
        assert found.p == expected.p
        assert found.interval == pytest.approx(
            list(stats.ttest_rel(values[found.arm], values["base"]).confidence_interval(0.95))
        )


def test_classifiers_of_one_generator_give_no_verdict() -> None:
    values = {"base": [0.8, 0.81, 0.8, 0.82], "a": [0.9, 0.91, 0.905, 0.92]}
    (found,) = compare(values, "base", one_generator=["a"], effect=0.01)
    assert (found.finding, found.p, found.needed) == (NO_VERDICT, None, None)
    assert found.interval[0] is not None


def test_seeds_needed_follow_from_the_stated_effect_and_the_correction() -> None:
    rng = np.random.default_rng(6)
    values = {name: rng.normal(0.8, 0.01, 8).tolist() for name in ("base", "a", "b", "c", "d")}
    for found in compare(values, "base", effect=0.01):
        deviation = float(np.std(np.subtract(values[found.arm], values["base"]), ddof=1))
        assert found.needed == pairs_needed(0.01, deviation, 4)
    n = pairs_needed(1.0, 1.0, 10)
    assert n is not None
    p = stats.ttest_1samp(np.random.default_rng(7).normal(1.0, 1.0, size=(4000, n)), 0.0, axis=1).pvalue
    assert float((p < 0.005).mean()) == pytest.approx(0.8, abs=0.06)
