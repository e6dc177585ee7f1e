"""Power-function averages of weights, whose length is chosen after training (Karras et al., arXiv 2312.02696, section
3)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

KEPT = (0.05, 0.10)  # relative lengths of the two averages that are kept, as in the paper
SNAPSHOTS = 8


def exponent(length: float) -> float:
    """The power gamma whose average has the relative standard deviation `length`, below about 0.28 (eq. 3 and 123
    there).

    The weights' times t in [0, 1], of density (gamma + 1) t^gamma, have the standard deviation
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))).
    """
    roots = np.roots([1, 7, 16 - length**-2, 12 - length**-2])
    return float(roots.real.max())


def overlap(ends: np.ndarray, powers: np.ndarray, other_ends: np.ndarray, other_powers: np.ndarray) -> np.ndarray:
    """Inner products (n, m) of averages: the integral over time of their densities (g + 1) t^g / T^(g + 1) up to T.

    Closed form: (g + 1) (h + 1) / (g + h + 1) min(T, U)^(g + h + 1) / (T^(g + 1) U^(h + 1)).
    """
    T, g, U, h = ends[:, None], powers[:, None], other_ends[None], other_powers[None]
    least = np.minimum(T, U)
    grown = (least / T) ** g * (least / U) ** h * least / (T * U)
    return np.asarray((g + 1) * (h + 1) / (g + h + 1) * grown)


class PowerEma:
    """Two averages with weights that grow as a power of the step, and snapshots of both at equal distances.

    After step t (from 1) each is average += (1 - beta) (weights - average), beta = (1 - 1/t)^(gamma + 1) (eq. 2).
    `kept` has the snapshots (S, 2, P) in float16, which go into checkpoints; `average` both averages, parameter by
    parameter.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int, length: float) -> None:
        """`length`: relative, of the average that `copy_to` gives unless another is chosen."""
        own = list(parameters)
        self._shapes = [parameter.shape for parameter in own]
        self._powers = np.array([exponent(kept) for kept in KEPT])
        self.average = [parameter.detach().clone() for _ in KEPT for parameter in own]
        self.steps = sorted({max(1, round(steps * (k + 1) / SNAPSHOTS)) for k in range(SNAPSHOTS)})
        count = sum(parameter.numel() for parameter in own)
        self.kept = {"snapshots": torch.zeros(len(self.steps), len(KEPT), count, dtype=torch.float16)}
        self.chosen = (self.steps[-1], length)

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter], step: int) -> None:
        """Take in the weights after step `step` (from 0)."""
        own, count = [parameter.detach() for parameter in parameters], len(self._shapes)
        for number, power in enumerate(self._powers):
            beta = (1 - 1 / (step + 1)) ** (power + 1)
            torch._foreach_lerp_(self.average[number * count : (number + 1) * count], own, 1 - beta)
        if step + 1 in self.steps:
            flat = [torch.cat([a.flatten() for a in self.average[n * count : (n + 1) * count]]) for n in (0, 1)]
            self.kept["snapshots"][self.steps.index(step + 1)] = torch.stack(flat).to("cpu", torch.float16)

    @torch.no_grad()
    def weights(self, end: int, length: float) -> list[torch.Tensor]:
        """The average of relative `length` over the training up to step `end`, by least squares over the snapshots up
        to there.

        Its density is projected on those of the snapshots (section 3.2 and algorithm 3); float32 on the CPU.
        """
        past = [n for n, step in enumerate(self.steps) if step <= end]
        ends = np.repeat(np.array(self.steps, float)[past], len(KEPT))
        powers = np.tile(self._powers, len(past))
        wanted = overlap(ends, powers, np.array([float(end)]), np.array([exponent(length)]))
        shares = np.linalg.lstsq(overlap(ends, powers, ends, powers), wanted, rcond=1e-10)[0][:, 0]
        shares /= shares.sum()
        mixed = torch.zeros(self.kept["snapshots"].shape[-1])
        for share, (n, k) in zip(shares, ((n, k) for n in past for k in range(len(KEPT))), strict=True):
            mixed += float(share) * self.kept["snapshots"][n, k].float()
        parts = mixed.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    @torch.no_grad()
    def put(self, parameters: Iterable[nn.Parameter], end: int, length: float) -> None:
        """Overwrite the parameters by such an average."""
        for parameter, value in zip(parameters, self.weights(end, length), strict=True):
            parameter.copy_(value)

    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite the parameters by the chosen average."""
        self.put(parameters, *self.chosen)
