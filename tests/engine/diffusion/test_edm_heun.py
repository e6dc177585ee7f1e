"""Heun's sampler of EDM: algorithm 1 of arXiv 2206.00364 written out, and the exact solution for Gaussian data."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from engine.diffusion import schedulers

D = 0.5
Denoiser = Callable[[np.ndarray, float], np.ndarray]


def levels(count: int) -> list[float]:
    """Eq. 5 of the paper: s_i = (s_max^(1/7) + i / (n - 1) (s_min^(1/7) - s_max^(1/7)))^7, and 0 at the end."""
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    return [(high + number / max(count - 1, 1) * (low - high)) ** 7 for number in range(count)] + [0.0]


def algorithm_1(denoise: Denoiser, x: np.ndarray, count: int) -> np.ndarray:
    sigmas = levels(count)
    for now, then in itertools.pairwise(sigmas):
        slope = (x - denoise(x, now)) / now
        moved = x + (then - now) * slope
        if then != 0:
            moved = x + (then - now) * (slope / 2 + (moved - denoise(moved, then)) / then / 2)
        x = moved
    return x


def sampled(denoise: Denoiser, x: np.ndarray, count: int, name: str = "heun") -> tuple[np.ndarray, int]:
    """By the scheduler as pipelines use it, which is given what the preconditioned network would say; and its
    evaluations."""
    scheduler: Any = schedulers.make(name, {}, "edm")
    scheduler.set_timesteps(count)
    sample, calls = torch.from_numpy(x).float(), 0
    for t in scheduler.timesteps:
        scheduler.scale_model_input(sample, t)
        s = float(np.exp(4 * float(t)))
        c_skip, c_out = D**2 / (s**2 + D**2), s * D / (s**2 + D**2) ** 0.5
        clean = denoise(sample.double().numpy(), s)
        output = torch.from_numpy((clean - c_skip * sample.numpy()) / c_out).float()
        sample = scheduler.step(output, t, sample, return_dict=False)[0]
        calls += 1
    return sample.numpy(), calls


def wavy(x: np.ndarray, s: float) -> np.ndarray:
    """Some smooth denoiser that is not linear."""
    return np.tanh(x / (1 + s)) + 0.1 * np.sin(3 * x / (1 + s) + np.log(s))


@pytest.mark.parametrize("count", [1, 2, 3, 18])
def test_it_is_algorithm_1(count: int) -> None:
    x = 80 * np.random.default_rng(0).normal(size=(4, 3, 2, 2))
    found, calls = sampled(wavy, x, count)
    assert calls == 2 * count - 1
    rounding = 0.05 if count == 2 else 2e-3  # from 80 to 0.002 at once: a slope times 80 in float32
    np.testing.assert_allclose(found, algorithm_1(wavy, x, count), atol=rounding)


def test_its_error_on_gaussian_data_falls_with_the_square_of_the_steps() -> None:
    """Data of variance v: the flow from s_max keeps x / sqrt(v + s^2), which is the exact end at s = 0."""
    v, x = 0.09, 80 * np.random.default_rng(1).normal(size=(200, 1, 1, 1))
    exact = x * (v / (v + 80**2)) ** 0.5
    errors = {
        (name, count): float(np.abs(sampled(lambda y, s: v / (v + s * s) * y, x, count, name)[0] - exact).mean())
        for name in ("heun", "euler")
        for count in (16, 32, 64)
    }
    for first, second in ((16, 32), (32, 64)):
        assert 3 < errors["heun", first] / errors["heun", second] < 6
        assert errors["euler", first] / errors["euler", second] < 2.5
    assert errors["heun", 32] < errors["euler", 64]  # at 63 and 64 evaluations
