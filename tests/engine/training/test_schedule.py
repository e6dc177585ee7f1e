"""The schedules equal torch's, at any step alone."""

from __future__ import annotations

import pytest
import torch

from engine.training.schedule import learning_rate, one_cycle


@pytest.mark.parametrize("steps", [2, 3, 10, 37, 700])
def test_equals_torch(steps: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    for step in range(steps):
        assert one_cycle(step, steps, 0.02) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < steps - 1:
            schedule.step()


def test_a_single_step_has_a_finite_rate() -> None:
    assert 0 < one_cycle(0, 1, 0.02) <= 0.02


@pytest.mark.parametrize("warmup", [0, 5])
def test_cosine_and_constant_equal_torch_after_a_linear_rise(warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30 - warmup)
    for step in range(warmup):
        for name in ("cosine", "constant"):
            assert learning_rate(name, step, 30, 0.02, warmup) == pytest.approx(0.02 * (step + 1) / (warmup + 1))
    for step in range(warmup, 30):
        assert learning_rate("cosine", step, 30, 0.02, warmup) == pytest.approx(optimizer.param_groups[0]["lr"])
        assert learning_rate("constant", step, 30, 0.02, warmup) == 0.02
        optimizer.step()
        schedule.step()
    assert learning_rate("one_cycle", 7, 30, 0.02) == one_cycle(7, 30, 0.02)
