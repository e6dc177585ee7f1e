"""Intervals and errors that stand beside every number: plain statistics, which know of the rest of the engine only
the shape that they are written in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from engine.statistics.published import Spread


@dataclass(frozen=True)
class Interval:
    """A confidence interval; a bound is None where the data does not give one (one value, or an unbounded set)."""

    low: float | None
    high: float | None

    def clipped(self, low: float, high: float) -> Interval:
        """The part inside [low, high]; coverage is kept where the quantity cannot lie outside."""
        return Interval(
            None if self.low is None else min(max(self.low, low), high),
            None if self.high is None else min(max(self.high, low), high),
        )

    def as_list(self) -> list[float | None]:
        """[low, high], for JSON."""
        return [self.low, self.high]


def standard_deviation(values: Sequence[float]) -> float | None:
    """The sample standard deviation (n - 1 in the denominator); None for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student-t interval of the mean of independent, about normal values: mean +- t(n - 1) sd / sqrt(n)."""
    spread = standard_deviation(values)
    if spread is None:
        return Interval(None, None)
    half = float(student_t.ppf((1 + level) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    centre = float(np.mean(values))
    return Interval(centre - half, centre + half)


def spread(values: Sequence[float], level: float = 0.95, *, bounded: bool = True) -> Spread:
    """Mean, standard deviation and Student-t interval of a result's repeats, for JSON; `bounded`: they lie in [0,
    1]."""
    interval = mean_interval(values, level)
    return {
        "mean": float(np.mean(values)),
        "sd": standard_deviation(values),
        "interval": (interval.clipped(0, 1) if bounded else interval).as_list(),
    }


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95) -> Interval:
    """Fieller's interval of mean(numerators) / mean(denominators) for PAIRED values (Fieller 1954, J. R. Stat. Soc. B
    16).

    It holds every r for which the paired t-test of numerators - r * denominators against zero is not significant. Both
    bounds are None for fewer than two pairs, and where the denominators' mean cannot be told from zero (no bounded
    set).
    """
    if len(numerators) != len(denominators):
        raise ValueError("paired values must be equally many")
    n = len(numerators)
    if n < 2:
        return Interval(None, None)
    (var_y, cov), (_, var_x) = np.cov(numerators, denominators) / n
    y, x = float(np.mean(numerators)), float(np.mean(denominators))
    t2 = float(student_t.ppf((1 + level) / 2, n - 1)) ** 2
    # (y - r x)^2 <= t2 (var_y - 2 r cov + r^2 var_x)  is  a r^2 - 2 b r + c <= 0
    a, b, c = x * x - t2 * var_x, x * y - t2 * cov, y * y - t2 * var_y
    if a <= 0:
        return Interval(None, None)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Interval((b - root) / a, (b + root) / a)


def binomial_error(proportion: float, trials: int) -> float:
    """Standard error of a proportion counted in independent trials: sqrt(p (1 - p) / n)."""
    return math.sqrt(proportion * (1 - proportion) / trials)
