"""The summary of a ratio search against sums by hand, scipy and statements that must hold of invented accuracies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from engine.study.search import search_summary
from engine.study.search.search_plan import Point
from engine.study.search.search_summary import ZERO

RATIOS = (0.0, 1.0, 2.0, 5.0)
Values = dict[Point, dict[tuple[int, int], float]]


def _values(generators: int, judges: int, gains: dict[float, float], noise: float = 0.01) -> Values:
    rng = np.random.default_rng(0)
    seeds = [(g, j) for g in range(generators) for j in range(judges)]
    return {Point(r): {s: 0.7 + gains[r] + noise * float(rng.normal()) for s in seeds} for r in RATIOS}


def test_intervals_and_gains_are_over_generator_seeds() -> None:
    values = _values(4, 3, {0.0: 0, 1.0: 0.05, 2.0: 0.06, 5.0: 0.0})
    found = {entry["ratio"]: entry for entry in search_summary.curve(values, 12, 50)}
    means = {p.ratio: np.array([[v[g, j] for j in range(3)] for g in range(4)]).mean(axis=1) for p, v in values.items()}
    raw = {r: stats.ttest_rel(means[r], means[0.0]).pvalue for r in RATIOS[1:]}
    for ratio in RATIOS:
        own, entry = means[ratio], found[ratio]
        low, high = stats.t.interval(0.95, 3, own.mean(), stats.sem(own))
        assert entry["interval"] == pytest.approx([low, high])
        assert entry["mean"] == pytest.approx(own.mean())
        assert entry["synthetic_images"] == ratio * 50
        if ratio:
            difference = own - means[0.0]
            gain = entry["gain"]
            bounds = stats.t.interval(0.95, 3, difference.mean(), stats.sem(difference))
            assert gain["difference"] == pytest.approx(difference.mean())
            assert gain["interval"] == pytest.approx(list(bounds))
            assert gain["p"] == pytest.approx(raw[ratio])
    smallest = min(raw, key=lambda ratio: raw[ratio])
    assert found[smallest]["gain"]["p_adjusted"] == pytest.approx(min(1.0, 3 * raw[smallest]))
    assert found[0.0]["gain"] is None


def test_with_one_generator_there_is_no_verdict_and_the_spread_over_judges_is_shown_as_such() -> None:
    values = _values(1, 6, {0.0: 0, 1.0: 0.5, 2.0: 0.5, 5.0: 0.5})
    for entry, own in zip(search_summary.curve(values, 6, 50), values.values(), strict=True):
        assert entry["interval"] == [None, None]
        assert entry["judges"] == pytest.approx(np.std(list(own.values()), ddof=1))
        if entry["ratio"]:
            assert (entry["gain"]["finding"], entry["gain"]["p"]) == ("no verdict: one generator seed", None)
    assert "no verdict: one generator seed" in search_summary.covers(1, 6, 10)
    assert "3 generator seeds" in search_summary.covers(3, 6, 10)


@pytest.mark.parametrize("best", RATIOS)
def test_the_best_mean_is_chosen_whatever_the_order(best: float) -> None:
    gains = {ratio: -0.1 * abs(RATIOS.index(ratio) - RATIOS.index(best)) for ratio in RATIOS}
    values = _values(3, 2, gains)
    mixed = dict(sorted(values.items(), key=lambda item: -item[0].ratio))
    for given in (values, mixed):
        found = search_summary.curve(given, 6, 50)
        assert [entry["ratio"] for entry in found] == list(RATIOS)
        assert search_summary.choose(found)["ratio"] == best


def test_more_is_better_until_noise_cannot_tell() -> None:
    """Rising means: the largest ratio is chosen; the plainer one is the smallest within a standard error of it."""
    level = {0.0: 0.5, 1.0: 0.790, 2.0: 0.799, 5.0: 0.8}
    wave = [-0.01, 0.0, 0.01]
    values = {Point(r): {(g, 0): level[r] + wave[g] for g in range(3)} for r in RATIOS}
    found = search_summary.curve(values, 3, 50)
    best = search_summary.choose(found)
    assert best["ratio"] == 5.0
    assert best["sd"] / math.sqrt(3) == pytest.approx(0.01 / math.sqrt(3))
    assert search_summary.plainer(found, best)["ratio"] == 2.0


def test_of_equals_the_smaller_ratio_is_chosen() -> None:
    values: Values = {Point(r): {(0, j): 0.75 for j in range(3)} for r in RATIOS}
    found = search_summary.curve(values, 3, 50)
    best = search_summary.choose(found)
    assert (best["key"], best["gain"]) == ("0x", None)
    assert search_summary.plainer(found, best)["key"] == "0x"
    assert all(entry["gain"]["finding"] == "no verdict: one generator seed" for entry in found[1:])


def test_a_stopped_setting_is_shown_and_neither_compared_nor_chosen() -> None:
    values = _values(2, 2, dict.fromkeys(RATIOS, 0.0))
    values[Point(5.0)] = {(0, 0): 0.99}
    found = search_summary.curve(values, 4, 50)
    last = found[-1]
    assert (last["whole"], last["gain"], last["accuracies"]) == (False, None, [[0.99]])
    assert search_summary.choose(found)["ratio"] != 5.0
    holm = [entry["gain"]["p_adjusted"] / entry["gain"]["p"] for entry in found[1:-1]]
    assert max(holm) <= 2 + 1e-9  # over two settings, not three


def test_the_test_reading_is_one_paired_comparison() -> None:
    values = _values(4, 2, {0.0: 0.0, 1.0: 0.03, 2.0: 0, 5.0: 0})
    two = {ZERO: values[ZERO], Point(1.0): values[Point(1.0)]}
    read = search_summary.reading(Point(1.0), two, 99)
    own, zero = (np.array(read[name]["units"]) for name in ("chosen", "zero"))
    assert read["gain"]["p_adjusted"] == pytest.approx(stats.ttest_rel(own, zero).pvalue)
    assert read["chosen"]["mean"] == pytest.approx(np.mean(list(values[Point(1.0)].values())))
    assert search_summary.reading(ZERO, {ZERO: values[ZERO]}, 99)["gain"] is None
