"""The exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Ema:
    """Averages trainable parameters: after every step, average += (1 - decay) * (weights - average).

    The decay grows from 0.1 with the step, min(decay, (1 + step) / (10 + step)), so that a short run is not an average
    over its first, random weights.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter], step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in parameters], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite the parameters by their averages."""
        for parameter, average in zip(parameters, self.average, strict=True):
            parameter.copy_(average)
