"""Accuracies of an equivalence study whose prices are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.study.equivalence.fit import gained
from engine.study.equivalence.real_curve import Floats, accuracy, angles
from engine.study.equivalence.result import Measured

SIZES = (20, 28, 40, 50, 57, 80, 100, 140, 200, 280, 400, 560, 800, 1100)
BASES = (50, 100, 200)
MULTIPLES = (1, 2, 5, 10, 20)


def true_accuracy(images: Floats | float) -> Floats:
    """A real curve that rises and flattens, as error 0.5 % + 1.2 n^-0.6."""
    return 0.995 - 1.2 * np.asarray(images, float) ** -0.6


def simulate(
    rng: np.random.Generator,
    a: Sequence[float],
    c2: float,
    generators: int = 5,
    judges: int = 5,
    spread: float = 0.004,
    judge_spread: float = 0.006,
) -> Measured:
    """What a study measures where n_syn / n_base = A (c2^x - 1): with spreads (in angle) of repeats and of
    classifiers."""
    c = np.log(c2)

    def repeat(images: float, common: float) -> Floats:
        noise = common + rng.normal(size=judges) * judge_spread
        return accuracy(angles(true_accuracy(images)) + noise)

    real, synthetic = [], []
    for _ in range(generators):
        real.append([repeat(n, rng.normal() * spread) for n in SIZES])
        rows = []
        for price, base in zip(a, BASES, strict=True):
            common = rng.normal() * spread / np.sqrt(2)
            worth = [base * (1 + gained(c, np.array(1 / (price * c)), np.array(m))) for m in MULTIPLES]
            rows.append([repeat(float(n), common + rng.normal() * spread / np.sqrt(2)) for n in worth])
        synthetic.append(rows)
    return Measured(SIZES, BASES, MULTIPLES, np.array(real), np.array(synthetic))


def peaked(
    rng: np.random.Generator,
    height: float,
    end: float,
    generators: int = 5,
    judges: int = 5,
    spread: float = 0.004,
    judge_spread: float = 0.006,
) -> Measured:
    """A study whose synthetic images are worth `height` of the base at 5x, half as much at 1x, and `end` at 20x
    (log-linear between)."""
    real = simulate(rng, [2.0, 3.0, 5.0], 2.5, generators, judges, spread, judge_spread)
    worth = np.interp(np.log(MULTIPLES), np.log([1, 5, 20]), [height / 2, height, end])
    synthetic = []
    for _ in range(generators):
        rows = []
        for base in BASES:
            noise = rng.normal() * spread + rng.normal(size=(len(MULTIPLES), judges)) * judge_spread
            rows.append(accuracy(angles(true_accuracy(base * (1 + worth)))[:, None] + noise))
        synthetic.append(rows)
    return Measured(SIZES, BASES, MULTIPLES, real.real, np.array(synthetic))
