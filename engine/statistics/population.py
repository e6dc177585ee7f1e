"""Intervals that speak about the population of images: the error of the seeds and of the test images that were drawn,
together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from engine.statistics.intervals import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pooled:
    """A mean with its standard error over seeds and images and the degrees of freedom of that (Satterthwaite 1946), and
    the seeds' own.

    Where few seeds happen to agree, the images' part brings many degrees of freedom for an error that is mostly
    unknown: with 3 seeds such intervals hold the truth in 92 %. So an interval is never narrower, nor p smaller, than
    that over seeds alone.
    """

    mean: float
    error: float
    freedom: float
    seeds_error: float
    seeds_freedom: int

    def interval(self, level: float = 0.95) -> Interval:
        """The wider of the Student-t intervals of the two errors."""
        at = (1 + level) / 2
        both = ((self.error, self.freedom), (self.seeds_error, self.seeds_freedom))
        half = max(float(student_t.ppf(at, freedom)) * error for error, freedom in both)
        return Interval(self.mean - half, self.mean + half)

    @property
    def p(self) -> float | None:
        """Two-sided p of a mean of 0, the larger of the two; None where nothing varies."""
        if not self.error:
            return None
        found = 2 * student_t.sf(abs(self.mean) / self.error, self.freedom)
        alone = 2 * student_t.sf(abs(self.mean) / self.seeds_error, self.seeds_freedom) if self.seeds_error else 0.0
        return float(max(found, alone))


def pooled(values: Floats) -> Pooled | None:
    """Of `values` (G, N), a row a generator seed (the mean over its judges), a column a test image; None for one row or
    column.

    Right or wrong (1 or 0) for an accuracy, the difference of two arms' for a paired comparison (McNemar's, over
    several classifiers). Seeds and images are crossed random effects: the variance of the mean is that over rows / G
    plus that over columns / N less that of the rest / (G N), which both hold (Cameron, Gelbach and Miller 2011, J. Bus.
    Econ. Stat. 29). The images' part is not let below zero, so the error is never below that over seeds.
    """
    g, n = values.shape
    if g < 2 or n < 2:
        return None
    rows, columns, mean = values.mean(1), values.mean(0), float(values.mean())
    rest = values - rows[:, None] - columns + mean
    of_rows, of_columns = float(rows.var(ddof=1)) / g, float(columns.var(ddof=1)) / n
    of_rest = float((rest**2).sum()) / ((g - 1) * (n - 1)) / (g * n)
    images = of_columns - of_rest
    alone = math.sqrt(of_rows)
    if images <= 0:
        return Pooled(mean, alone, g - 1, alone, g - 1)
    total = of_rows + images
    parts = of_rows**2 / (g - 1) + of_columns**2 / (n - 1) + of_rest**2 / ((g - 1) * (n - 1))
    return Pooled(mean, math.sqrt(total), total**2 / parts, alone, g - 1)
