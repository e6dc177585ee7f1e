"""Power-function averages against the published exponents, and averages over all steps written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import nn

from engine.training.powerema import KEPT, PowerEma, exponent, overlap

STEPS = 400


def path(parameters: int = 40) -> np.ndarray:
    """(STEPS, P): weights as a training might leave them after each step, drifting and shaking."""
    rng = np.random.default_rng(0)
    drift = rng.normal(size=parameters) * (1 - np.exp(-4 * np.arange(1, STEPS + 1) / STEPS))[:, None]
    return drift + 0.03 * rng.normal(size=(STEPS, parameters)).cumsum(0) / 5


def averaged(weights: np.ndarray, end: int, length: float) -> np.ndarray:
    """Over steps 1 to `end`, each with the integral of t^gamma over its own stretch of time."""
    power = exponent(length) + 1
    times = np.arange(end + 1) / end
    return np.diff(times**power) @ weights[:end]


def run(ema: PowerEma, weights: np.ndarray, first: int = 0, last: int = STEPS) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(weights.shape[1]))
    for step in range(first, last):
        parameter.data = torch.from_numpy(weights[step]).float()
        ema.update([parameter], step)
    return parameter


@pytest.fixture(scope="module")
def ema() -> PowerEma:
    made = PowerEma([nn.Parameter(torch.zeros(40))], STEPS, 0.1)
    run(made, path())
    return made


@pytest.mark.parametrize(("length", "power"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_the_published_ones(length: float, power: float) -> None:
    """Section 3.1 of arXiv 2312.02696."""
    assert exponent(length) == pytest.approx(power, abs=0.005)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.2, 0.25])
def test_the_length_is_the_standard_deviation_of_the_density(length: float) -> None:
    g = exponent(length)
    mean, square = (integrate.quad(lambda t, n=n: (g + 1) * t ** (g + n), 0, 1)[0] for n in (1, 2))
    assert (square - mean**2) ** 0.5 == pytest.approx(length, rel=1e-6)


def test_overlaps_are_the_integrals() -> None:
    ends, powers = np.array([10.0, 25.0]), np.array([6.94, 16.97])
    found = overlap(ends, powers, ends[::-1].copy(), powers)
    for i, (t_end, g) in enumerate(zip(ends, powers, strict=True)):
        for j, (u_end, h) in enumerate(zip(ends[::-1], powers, strict=True)):

            def product(t: float, t_end: float = t_end, g: float = g, u_end: float = u_end, h: float = h) -> float:
                return (g + 1) * t**g / t_end ** (g + 1) * (h + 1) * t**h / u_end ** (h + 1)

            assert found[i, j] == pytest.approx(integrate.quad(product, 0, min(t_end, u_end))[0], rel=1e-6)


@pytest.mark.parametrize("number", range(len(KEPT)))
def test_the_kept_averages_are_those_over_all_steps(ema: PowerEma, number: int) -> None:
    np.testing.assert_allclose(ema.average[number].numpy(), averaged(path(), STEPS, KEPT[number]), atol=1e-5)
    for n, step in enumerate(ema.steps):
        kept = ema.kept["snapshots"][n, number].float().numpy()
        np.testing.assert_allclose(kept, averaged(path(), step, KEPT[number]), atol=2e-3)  # in float16


@pytest.mark.parametrize("length", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
@pytest.mark.parametrize(("share", "within"), [(0.25, 0.05), (0.5, 0.02), (1.0, 0.01)])
def test_any_length_is_rebuilt_afterwards(ema: PowerEma, length: float, share: float, within: float) -> None:
    """Near to the average over all steps, of the way that the weights have gone, and nearer than either kept average.

    A quarter of the training has two snapshots to rebuild from, all of it eight.
    """
    end = int(share * STEPS)
    [found] = ema.weights(end, length)
    expected = averaged(path(), end, length)
    error = np.abs(found.numpy() - expected).mean()
    assert error < within * np.abs(path()[-1]).mean()
    if length not in KEPT and share == 1.0:
        assert error < 0.5 * min(np.abs(averaged(path(), end, kept) - expected).mean() for kept in KEPT)


def test_put_and_copy_to_overwrite_parameters_of_any_shape() -> None:
    own = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4))]
    made = PowerEma(own, 8, 0.05)
    for step in range(8):
        for value in own:
            value.data.fill_(step + 1.0)
        made.update(own, step)
    expected = averaged(np.arange(1.0, 9)[:, None], 8, 0.05)[0]
    made.copy_to(own)
    for value in own:
        torch.testing.assert_close(value.data, torch.full_like(value, expected), rtol=1e-3, atol=1e-3)
    made.chosen = (4, 0.1)
    made.copy_to(own)
    assert own[0][0, 0].item() == pytest.approx(averaged(np.arange(1.0, 9)[:, None], 4, 0.1)[0], rel=1e-2)


def test_it_goes_on_from_its_state(ema: PowerEma) -> None:
    first, second = (PowerEma([nn.Parameter(torch.zeros(40))], STEPS, 0.1) for _ in range(2))
    run(first, path(), 0, 230)
    for mine, saved in zip(second.average, first.average, strict=True):
        mine.copy_(saved)
    second.kept["snapshots"].copy_(first.kept["snapshots"])
    run(second, path(), 230)
    assert torch.equal(second.kept["snapshots"], ema.kept["snapshots"])
    assert torch.equal(second.weights(STEPS, 0.07)[0], ema.weights(STEPS, 0.07)[0])


@pytest.mark.parametrize("steps", [1, 3, 8, 9, 2000])
def test_a_training_of_any_length_has_snapshots_up_to_its_end(steps: int) -> None:
    found = PowerEma([nn.Parameter(torch.zeros(1))], steps, 0.1).steps
    assert found[-1] == steps
    assert len(found) == min(steps, 8)
    assert found == sorted(set(found))
