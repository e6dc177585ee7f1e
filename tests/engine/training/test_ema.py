"""The average of the weights against its closed form."""

from __future__ import annotations

import pytest
from torch import nn

from engine.training.ema import Ema


def test_average_equals_the_weighted_sum() -> None:
    model = nn.Linear(2, 1, bias=False)
    values = [0.0, 1.0, -2.0, 5.0, 3.0, 3.0]
    nn.init.constant_(model.weight, values[0])
    ema = Ema(model.parameters(), 0.4)
    for step, value in enumerate(values[1:]):
        nn.init.constant_(model.weight, value)
        ema.update(model.parameters(), step)
    decays = [min(0.4, (1 + step) / (10 + step)) for step in range(len(values) - 1)]
    expected = values[0]
    for decay, value in zip(decays, values[1:], strict=True):
        expected = decay * expected + (1 - decay) * value
    assert decays[0] == pytest.approx(0.1)
    assert decays[-1] == pytest.approx(5 / 14)
    ema.copy_to(model.parameters())
    assert model.weight.tolist()[0] == pytest.approx([expected, expected], rel=1e-6)
