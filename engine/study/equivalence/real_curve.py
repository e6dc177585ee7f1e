"""The real curve of an equivalence study: accuracies as angles, their random repeats, and the size that an accuracy is
worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def angles(accuracies: Any) -> Floats:
    """asin(sqrt(accuracy)): the spread of a binomial share in it hardly depends on the share (Anscombe 1948, Biometrika
    35)."""
    return np.arcsin(np.sqrt(np.clip(np.asarray(accuracies, float), 0.0, 1.0)))


def accuracy(angle: Floats) -> Floats:
    """The share whose angle is given."""
    return np.sin(np.clip(angle, 0.0, np.pi / 2)) ** 2


def repeats(values: Floats, count: int, rng: np.random.Generator) -> Floats:
    """(count, D) draws of the mean of G repeats, `values` (G, D): a multivariate-t bootstrap.

    Residuals of the repeats with normal weights have the covariance of the mean; divided by sqrt(chi2(G-1) / (G-1))
    their percentiles of any linear function are its Student-t interval, whatever the covariance between the D columns.
    """
    g = len(values)
    mean = values.mean(0)
    weights = rng.standard_normal((count, g)) / np.sqrt(rng.chisquare(g - 1, (count, 1)) / (g - 1))
    return mean + weights @ (values - mean) / np.sqrt(g * (g - 1))


class Curve:
    """Accuracy against the number of real images, made monotone: knots are pools of adjacent violators, straight in log
    n between."""

    def __init__(self, sizes: Floats, angle: Floats) -> None:
        """`sizes` (S,) rising numbers of real images, `angle` (S,) their mean accuracies as angles."""
        fitted = isotonic_regression(angle)
        logs = np.log(sizes)
        edges = fitted.blocks
        self.angle = fitted.x[edges[:-1]]
        self.log = np.add.reduceat(logs, edges[:-1]) / np.diff(edges)

    def worth(self, angle: Floats) -> tuple[Floats, Bools]:
        """The numbers of real images that give these accuracies, and which lie above the curve (there the top knot is a
        lower bound).

        Accuracies below the curve are worth its lowest knot.
        """
        return np.exp(np.interp(angle, self.angle, self.log)), angle > self.angle[-1]

    def at(self, sizes: Floats) -> Floats:
        """The angles at these numbers of real images, the end knots' beyond them."""
        return np.interp(np.log(sizes), self.log, self.angle)
