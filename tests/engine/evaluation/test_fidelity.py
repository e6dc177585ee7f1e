"""Distances of feature sets against closed forms on Gaussians and a brute force."""

from __future__ import annotations

import numpy as np
import pytest

from engine.evaluation.fidelity import _mmd, distances, frechet, kid


def test_frechet_distance_of_gaussians_is_that_of_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (200_000, 3)), rng.normal([1, 0, 0], [2, 1, 1], (200_000, 3))
    assert frechet(one, other) == pytest.approx(1 + (2 - 1) ** 2, rel=0.02)


def test_the_kernel_distance_is_the_u_statistic() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(7, 4)), rng.normal(0.5, 1, (7, 4))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    own = [np.mean([kernel(a[i], a[j]) for i in range(7) for j in range(7) if i != j]) for a in (one, other)]
    across = np.mean([kernel(a, b) for a in one for b in other])
    assert _mmd(one, other) == pytest.approx(own[0] + own[1] - 2 * across)


def test_equal_distributions_are_at_zero_and_shifted_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    one, other, moved = rng.normal(size=(2000, 8)), rng.normal(size=(2000, 8)), rng.normal(0.3, 1, (2000, 8))
    value, error = kid(one, other)
    assert abs(value) < 4 * error
    assert kid(one, moved)[0] > 0.02
    assert distances(one, moved)["images"] == [2000, 2000]
