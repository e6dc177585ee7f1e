"""The fit recovers what it is made from: exactly without noise, as scipy's least squares, and within its intervals with
noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares

from engine.study.equivalence.fit import fit, gained, paper_form
from engine.study.equivalence.result import Analysis
from tests.support.equivalence import BASES, MULTIPLES, simulate

Y = np.array(MULTIPLES, float)


def gains(a: list[float], c2: float) -> np.ndarray:
    """n_real+ / n_base by the formula itself, solved for it with logarithms to base c2."""
    return np.array([[np.log(1 + y / price) / np.log(c2) for y in Y] for price in a])


def test_the_formula_is_the_papers() -> None:
    x = gains([3.0], 2.5)[0]
    assert 3.0 * (2.5**x - 1) == pytest.approx(Y)
    c = np.log(2.5)
    assert gained(c, np.array(1 / (3.0 * c)), Y) == pytest.approx(x)


@pytest.mark.parametrize(("a", "c2"), [([2.0, 3.0, 5.0], 2.5), ([0.5, 1.0, 8.0], 38.0), ([20.0, 40.0, 80.0], 1.7)])
def test_without_noise_the_parameters_come_back(a: list[float], c2: float) -> None:
    x = gains(a, c2)[None]
    found = fit(x, np.zeros(x.shape, bool), Y, np.ones((3, 5)))
    assert found.c2[0] == pytest.approx(c2, rel=0.03)
    assert found.a[0] == pytest.approx(a, rel=0.05)
    assert found.marginal[0] == pytest.approx(np.array(a) * np.log(c2), rel=0.02)
    assert found.doubling[0] == pytest.approx(np.array(a) * (c2 - 1), rel=0.03)


def test_with_noise_it_is_as_good_as_scipys_least_squares_from_the_truth() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.5, 2, (3, 5))
    for _ in range(5):
        x = gains([2.0, 3.0, 5.0], 2.5) + rng.normal(size=(3, 5)) * 0.05
        found = fit(x[None], np.zeros((1, 3, 5), bool), Y, weights)

        def residuals(p: np.ndarray, x: np.ndarray = x) -> np.ndarray:
            c, v = np.exp(p[0]), np.exp(p[1:])
            return ((np.log1p(c * v[:, None] * Y) / c - x) * np.sqrt(weights)).ravel()

        best = least_squares(residuals, np.log([np.log(2.5), 0.5, 0.36, 0.22]))
        ours = residuals(np.log([found.c[0], *found.v[0]]))
        assert (ours**2).sum() <= 2 * best.cost * 1.01 + 1e-6
        assert found.c2[0] == pytest.approx(np.exp(np.exp(best.x[0])), rel=0.05)


def test_a_lower_bound_counts_only_where_the_prediction_is_below_it() -> None:
    x = gains([2.0], 2.5)[None]
    above = np.zeros(x.shape, bool)
    above[..., -1] = True
    lowered = x.copy()
    lowered[..., -1] *= 0.8  # the curve ended there: at least this
    found = fit(lowered, above, Y, np.ones((1, 5)))
    assert found.a[0, 0] == pytest.approx(2.0, rel=0.05)
    taken_as_exact = fit(lowered, np.zeros(x.shape, bool), Y, np.ones((1, 5)))
    assert taken_as_exact.c2[0] > 1.2 * found.c2[0]


def test_no_gain_has_no_price() -> None:
    found = fit(np.full((1, 2, 5), -0.1), np.zeros((1, 2, 5), bool), Y, np.ones((2, 5)))
    assert found.v[0].tolist() == [0, 0]
    assert np.isinf(found.marginal).all()


def test_the_papers_form_is_recovered_where_it_holds() -> None:
    rate = 0.008
    a = [float(np.exp(rate * base)) for base in BASES]
    x = gains(a, 3.0)
    found, c = paper_form(x, np.zeros(x.shape, bool), Y, np.ones(x.shape), np.array(BASES, float))
    assert found == pytest.approx(rate, rel=0.05)
    assert np.exp(c) == pytest.approx(3.0, rel=0.15)


def test_intervals_hold_the_truth_in_95_percent_of_200_simulations() -> None:
    """A and c2, both prices too, of a study with three repeats. A share of 95 % of 200 has a standard error of 1.5
    %."""
    a, c2, rng = [2.0, 3.0, 5.0], 2.5, np.random.default_rng(0)
    hits = np.array([_hits(Analysis(simulate(rng, a, c2, 3), 300, seed), a, c2) for seed in range(200)])
    covered = hits.mean(0)
    assert covered[0] >= 0.95  # c2
    assert covered.mean() >= 0.95
    assert covered.min() >= 0.93


def _hits(analysis: Analysis, a: list[float], c2: float) -> list[bool]:
    found, price = analysis.fit, np.array(a)
    pairs = [(found.c2, c2)]
    for b in range(3):
        pairs += [(found.a[:, b], price[b]), (found.doubling[:, b], price[b] * (c2 - 1))]
        pairs.append((found.marginal[:, b], price[b] * np.log(c2)))
    return [_inside(analysis.interval(values), float(truth)) for values, truth in pairs]


def _inside(interval: list[float | None], truth: float) -> bool:
    low, high = interval
    return (low is None or low <= truth) and (high is None or truth <= high)
