"""The fit of n_syn / n_base = A (c2^(n_real+ / n_base) - 1) (arXiv 2508.09550), by least squares over a grid, for many
draws at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from engine.study.equivalence.real_curve import Bools, Floats

# v is the worth of the first synthetic image in real ones, 1 / (A ln c2); c is ln c2. Negative c, a price that falls,
# is allowed
# for: estimates of a constant price (c = 0) scatter to both sides, and without it they would be biased.
V_GRID = np.concatenate([[0.0], np.geomspace(1e-4, 20.0, 160)])
C_GRID = np.concatenate([-np.geomspace(1.5, 0.02, 20), np.geomspace(0.02, 8.0, 60)])
LEAST = -0.999  # of c v y, beyond which a falling price would be below zero
FINE = 150
CHUNK = 250  # draws worked on at once: about 60 MB


@dataclass(frozen=True)
class Fit:
    """Parameters of D draws: `c` (D,) is ln c2, one for all bases; `v` (D, B) = 1 / (A ln c2), 0 where nothing is
    gained."""

    c: Floats
    v: Floats

    @property
    def c2(self) -> Floats:
        """The base of the power (D,)."""
        return np.exp(self.c)

    @property
    def a(self) -> Floats:
        """A of each base (D, B); infinite where nothing is gained, negative where c is."""
        with np.errstate(divide="ignore"):
            return 1 / (self.v * self.c[:, None])

    @property
    def marginal(self) -> Floats:
        """The price of the first further real image in synthetic ones (D, B): A ln c2."""
        with np.errstate(divide="ignore"):
            return 1 / self.v

    @property
    def doubling(self) -> Floats:
        """Synthetic images a base image that are worth as many real images as the base has (D, B): A (c2 - 1)."""
        return self.a * np.expm1(self.c)[:, None]


def gained(c: Floats, v: Floats, y: Floats) -> Floats:
    """x = n_real+ / n_base for y = n_syn / n_base: log_c2(1 + y / A) = ln(1 + c v y) / c."""
    return np.log1p(np.maximum(c * v * y, LEAST)) / c


def fit(x: Floats, above: Bools, y: Floats, weights: Floats) -> Fit:
    """Weighted least squares in x, for D draws: `x` (D, B, K) gains, `y` (K,) amounts, `weights` (B, K) as 1 /
    variance.

    Where `above` (D, B, K), x is a lower bound: only a prediction below it counts. The optimum over the whole grid is
    taken, so that no starting point matters.
    """
    coarse = _search(x, above, y, weights, C_GRID, [V_GRID] * x.shape[1])
    return _search(x, above, y, weights, _around_power(coarse.c), [_around_worth(v) for v in coarse.v.T])


def _around_power(c: Floats) -> Floats:
    """A finer grid over the range that the bulk of the draws has found, and the coarse one beyond; without 0, where it
    is not defined."""
    low, high = np.quantile(c, [0.01, 0.99])
    found = np.concatenate([np.linspace(low - 0.05 - 0.1 * abs(low), high + 0.05 + 0.1 * abs(high), FINE), C_GRID[::2]])
    return np.unique(found[np.abs(found) > 1e-3])


def _around_worth(v: Floats) -> Floats:
    """The same for the worth of the first image, with 0."""
    positive = v[v > 0]
    if not len(positive):
        return V_GRID
    low, high = np.quantile(positive, [0.01, 0.99])
    return np.unique(np.concatenate([np.geomspace(low * 0.75, high / 0.75, FINE), V_GRID[::4]]))


def _search(x: Floats, above: Bools, y: Floats, weights: Floats, cs: Floats, vs: list[Floats]) -> Fit:
    predicted = [gained(cs[:, None, None], v[None, :, None], y) for v in vs]  # B of (C, V, K)
    parts = [
        _best(x[first : first + CHUNK], above[first : first + CHUNK], predicted, weights, cs, vs)
        for first in range(0, len(x), CHUNK)
    ]
    return Fit(np.concatenate([c for c, _ in parts]), np.concatenate([v for _, v in parts]))


def _best(
    x: Floats, above: Bools, predicted: list[Floats], weights: Floats, cs: Floats, vs: list[Floats]
) -> tuple[Floats, Floats]:
    draws, bases, _ = x.shape
    loss, chosen = np.zeros((draws, len(cs))), np.empty((draws, bases, len(cs)))
    for b in range(bases):
        errors = _errors(x[:, b], above[:, b], predicted[b], weights[b])
        chosen[:, b] = vs[b][errors.argmin(2)]
        loss += errors.min(2)
    best = loss.argmin(1)
    rows = np.arange(draws)
    return cs[best], chosen[rows, :, best]


def _errors(x: Floats, above: Bools, predicted: Floats, weights: Floats) -> Floats:
    """(D, C, V) weighted squared errors of one base, up to a constant a draw."""
    flat = predicted.reshape(-1, predicted.shape[2])
    exact = np.where(above, 0.0, weights)  # (D, K)
    errors = exact @ (flat.T**2) - 2 * (exact * x) @ flat.T
    for k in np.flatnonzero(above.any(0)):
        rows = np.flatnonzero(above[:, k])
        short = np.maximum(x[rows, k, None] - flat[None, :, k], 0.0)
        errors[rows] += weights[k] * short**2
    return errors.reshape(len(x), *predicted.shape[:2])


def paper_form(x: Floats, above: Bools, y: Floats, weights: Floats, bases: Floats) -> tuple[float, float]:
    """(a, c) of the paper's own form A = c1^(n_base / k) = exp(a n_base), a = ln(c1) / k, fitted to one set of gains
    (B, K)."""

    def loss(point: Floats) -> float:
        c, a = np.exp(point[0]), point[1] / bases.max()
        difference = gained(c, np.exp(-a * bases)[:, None] / c, y) - x
        return float((weights * np.where(above, np.minimum(difference, 0.0), difference) ** 2).sum())

    starts = [np.array([np.log(c), a]) for c in C_GRID[20::4] for a in np.linspace(-12.0, 12.0, 49)]
    best = minimize(loss, min(starts, key=loss), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-9})
    return float(best.x[1] / bases.max()), float(np.exp(best.x[0]))
