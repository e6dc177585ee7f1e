"""The one-cycle schedule equals torch's, at any step alone."""

from __future__ import annotations

import pytest
import torch

from engine.training.schedule import one_cycle


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
