"""Whether what was measured has the form that is fitted to it: a lack-of-fit F test, its distribution by a bootstrap of
the noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.study.equivalence.fit import gained
from engine.study.equivalence.real_curve import Curve, Floats

V_GRID = np.concatenate([[0.0], np.geomspace(1e-3, 20.0, 70)])
C_GRID = np.concatenate([-np.geomspace(1.5, 0.05, 8), np.geomspace(0.05, 8.0, 28)])
BEYOND = 3.0  # in the logarithm of the size: how far the curve goes on above its end, as steeply as before it
LEVEL = 0.05
SHRINK = 4  # degrees of freedom of the prior, equal variances of all amounts, for the covariance of a repeat's noise


@dataclass(frozen=True)
class Lack:
    """F over all bases with its p."""

    statistic: float
    p: float

    @property
    def rejected(self) -> bool:
        """At 5 %."""
        return self.p < LEVEL


def lack_of_fit(
    sizes: Floats, real: Floats, bases: Floats, y: Floats, synthetic: Floats, draws: int, seed: int
) -> Lack | None:
    """The test, from angles: `real` (G, S) at `sizes` (S,), `synthetic` (G, B, K) for `bases` (B,) and amounts `y`
    (K,).

    Under the form each base's accuracies are R(n_base (1 + x(y))) with the real curve R, up to a constant of the base:
    a repeat's order of images and generator move all its amounts together, and the constant leaves that out. The
    statistic is the sum of squares that is left after the best c, v of each base and constants, over the mean square of
    what differs between repeats beside a repeat's own constant. It is compared with its values in `draws` studies of
    the fitted form: noise of the repeats with their pooled covariance over amounts, shrunk towards equal variances, and
    of the real curve, whose error goes into every fit. None with fewer than two amounts or repeats, or without any
    noise.
    """
    g, b, k = synthetic.shape
    residuals = _beside(synthetic)
    if g < 2 or k < 2 or not residuals.any():
        return None
    of_cells, of_curve = _root(residuals.reshape(g * b, k), b * (g - 1)), _root(_beside(real), g - 1)
    grid = _Grid(bases, y)
    mean, curve = synthetic.mean(0), Curve(sizes, real.mean(0))
    found, fitted = grid.fit(mean, curve)
    statistic = found * g / _square(residuals)
    rng = np.random.default_rng([0x6C61636B, seed])
    level, above = curve.at(sizes), 0
    for _ in range(draws):
        noise = (rng.standard_normal((g * b, k)) @ of_cells).reshape(g, b, k)
        bent = level + rng.standard_normal(len(sizes)) @ of_curve / np.sqrt(g)
        left, _ = grid.fit(fitted + noise.mean(0), Curve(sizes, bent))
        above += left * g / _square(_beside(noise)) >= statistic
    return Lack(float(statistic), (1 + above) / (1 + draws))


class _Grid:
    """Least squares over c, common to the bases, and each base's v and constant, on a grid."""

    def __init__(self, bases: Floats, y: Floats) -> None:
        gains = gained(C_GRID[:, None, None], V_GRID[None, :, None], y)
        self._logs = np.log(bases)[:, None, None, None] + np.log1p(np.maximum(gains, 0.0))  # (B, C, V, K)

    def fit(self, mean: Floats, curve: Curve) -> tuple[float, Floats]:
        """The sum of squares that is left of `mean` (B, K), and what is fitted to it, without the constants."""
        told = _beyond(curve, self._logs)
        told = told - told.mean(-1, keepdims=True)
        centred = mean - mean.mean(1, keepdims=True)
        left = ((told - centred[:, None, None]) ** 2).sum(-1)  # (B, C, V)
        c = int(left.min(2).sum(0).argmin())
        chosen = left[:, c].argmin(1)
        rows = np.arange(len(mean))
        return float(left[rows, c, chosen].sum()), told[rows, c, chosen]


def _beyond(curve: Curve, logs: Floats) -> Floats:
    """The curve's angles at the logarithms of sizes; above its end it goes on as straight as before it."""
    if len(curve.log) < 2:
        return np.full(logs.shape, curve.angle[0])
    slope = (curve.angle[-1] - curve.angle[-2]) / (curve.log[-1] - curve.log[-2])
    log = np.append(curve.log, curve.log[-1] + BEYOND)
    return np.interp(logs, log, np.append(curve.angle, curve.angle[-1] + slope * BEYOND))


def _beside(values: Floats) -> Floats:
    """(G, ..., K) what repeats differ by beside a constant each, of each row."""
    centred = values - values.mean(-1, keepdims=True)
    return centred - centred.mean(0)


def _square(residuals: Floats) -> float:
    """Their mean square, by (G - 1) (K - 1) degrees of freedom a row."""
    g, k = residuals.shape[0], residuals.shape[-1]
    freedom = residuals.size / (g * k) * (g - 1) * (k - 1)
    return max(float((residuals**2).sum()) / freedom, 1e-12)


def _root(residuals: Floats, freedom: int) -> Floats:
    """The square root (K, K) of the covariance of residuals (N, K), shrunk towards equal variances beside a
    constant."""
    k = residuals.shape[1]
    own = residuals.T @ residuals / freedom
    equal = np.trace(own) / (k - 1) * (np.eye(k) - 1 / k)
    share = freedom / (freedom + SHRINK)
    values, vectors = np.linalg.eigh(share * own + (1 - share) * equal)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
