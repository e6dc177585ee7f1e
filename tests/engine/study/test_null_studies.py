"""Simulated studies of nothing: how often one finds something, by the functions that studies use; the benchmark has
1,000 a case."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.null_studies import Truth, searches

STUDIES = 150


def test_nested_seeds_and_a_fresh_reading_find_nothing_where_there_is_nothing() -> None:
    found = searches(Truth(images=1.0, level=2.0), STUDIES, validation=150, test=200)
    assert found["higher"] * STUDIES <= stats.binom.ppf(0.999, STUDIES, 0.025)
    lowest, highest = (stats.binom.ppf(q, found["compared"], p) for q, p in ((0.001, 0.94), (0.999, 0.96)))
    assert lowest <= found["population"] * found["compared"] <= highest


def test_choosing_on_the_test_images_with_shared_judges_was_found_to_be_wrong() -> None:
    """The simulation can tell: the way of before is told from the nominal one."""
    before = searches(Truth(), STUDIES, validation=100, test=300, before=True)
    assert before["seeds"] < 0.85


def test_the_truth_by_quadrature_is_that_of_many_draws() -> None:
    truth = Truth(gains=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.3))
    rng = np.random.default_rng(0)
    drawn = truth.answers(rng, [0, 6], 4000, 20, 3).mean((1, 2, 3))
    assert drawn == pytest.approx([truth.accuracy(0), truth.accuracy(6)], abs=0.02)
    assert truth.accuracy(6) - truth.accuracy(0) == pytest.approx(drawn[1] - drawn[0], abs=0.01)
