"""The real curve against scikit-learn's isotonic regression, and the bootstrap of repeats against Student's t."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.isotonic import IsotonicRegression

from engine.study.equivalence.real_curve import Curve, accuracy, angles, repeats


def test_angles_and_accuracies_are_inverse_and_steady_the_spread() -> None:
    shares = np.linspace(0, 1, 11)
    assert accuracy(angles(shares)) == pytest.approx(shares)
    rng = np.random.default_rng(0)
    spreads = [angles(rng.binomial(400, p, 20_000) / 400).std() for p in (0.3, 0.6, 0.9)]
    assert spreads == pytest.approx([0.5 / np.sqrt(400)] * 3, rel=0.05)


def test_the_curve_is_isotonic_regression_with_its_knots_in_the_middle_of_each_pool() -> None:
    rng = np.random.default_rng(1)
    sizes = np.geomspace(20, 900, 14)
    for _ in range(20):
        angle = np.sort(rng.normal(size=14)) + rng.normal(size=14) * 0.4
        curve = Curve(sizes, angle)
        fitted = IsotonicRegression().fit_transform(np.arange(14), angle)
        values, pools = np.unique(fitted, return_inverse=True)
        assert curve.angle == pytest.approx(values)
        middles = [np.log(sizes[pools == k]).mean() for k in range(len(values))]
        assert curve.log == pytest.approx(middles)


def test_worth_is_the_size_that_gives_an_accuracy_and_is_bounded_by_the_curve() -> None:
    sizes = np.array([50.0, 100.0, 400.0])
    curve = Curve(sizes, np.array([1.0, 1.2, 1.3]))
    worth, above = curve.worth(np.array([0.5, 1.0, 1.1, 1.2, 1.25, 1.3, 1.4]))
    assert worth == pytest.approx([50, 50, np.sqrt(50 * 100), 100, 200, 400, 400])
    assert above.tolist() == [False] * 6 + [True]
    inside = np.array([60.0, 100.0, 333.0])
    assert curve.worth(curve.at(inside))[0] == pytest.approx(inside)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_percentiles_of_a_linear_function_are_its_student_t_interval(count: int) -> None:
    rng = np.random.default_rng(count)
    values = rng.normal(size=(count, 4)) @ rng.normal(size=(4, 4))
    weights = rng.normal(size=4)
    drawn = repeats(values, 400_000, rng) @ weights
    single = values @ weights
    half = stats.t.ppf(0.975, count - 1) * single.std(ddof=1) / np.sqrt(count)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (low, high) == pytest.approx((single.mean() - half, single.mean() + half), abs=0.03 * half)
