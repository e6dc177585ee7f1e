"""Images of the training split that no training sees: they choose how long the training and the average of its weights
should be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from engine.diffusion.process import Process
from engine.seeds import derive
from engine.training import draws
from engine.training.powerema import PowerEma
from engine.training.trainingresults import HeldOutCurve

PAIRS, MOST = 512, 2048  # of image and noise for each reading, at least and at most
BATCH = 128
LENGTHS = (0.02, 0.05, 0.1, 0.15, 0.2)


def split(labels: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are trained on and rows that are held out, rising: about `share` of all, by class as evenly as whole
    images allow."""
    order = np.random.default_rng(derive(seed, "held out")).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    count = int(len(labels) * share)
    places = (np.arange(count) * len(labels) / max(count, 1) + len(labels) / max(2 * count, 1)).astype(int)
    held = np.sort(by_class[places])
    return np.setdiff1d(np.arange(len(labels)), held), held


class Pairs:
    """Batches of (rows, noise, times), the same at each reading: noise levels at even quantiles, every image equally
    often.

    Of more than `MOST` images as many are drawn, each at most once.
    """

    def __init__(self, images: int, shape: tuple[int, ...], process: Process, seed: int) -> None:
        self.count = min(max(1, math.ceil(PAIRS / images)) * images, max(MOST, PAIRS))
        self._images, self._shape, self._process, self._seed = images, shape, process, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        generator = draws.generator(self._seed, "held out", 0)
        drawn = self._process.times(64 * self.count, generator).sort().values  # even quantiles of whatever is drawn
        times = drawn[32::64][torch.randperm(self.count, generator=generator)]
        rows = torch.randperm(self._images, generator=generator)[torch.arange(self.count) % self._images]
        for first in range(0, self.count, BATCH):
            part = rows[first : first + BATCH]
            yield part, torch.randn(len(part), *self._shape, generator=generator), times[first : first + BATCH]


def choose(
    ema: PowerEma,
    parameters: Callable[[], Iterable[nn.Parameter]],
    seen: Callable[[], float],
    unseen: Callable[[], float],
) -> HeldOutCurve:
    """Set `ema.chosen` to the step and length of the lowest held-out error: the step at one length, then the length
    there.

    `seen` and `unseen` give the error on training and on held-out images of the weights that stand in `parameters`.
    Gives both curves, and what was chosen.
    """
    middle = LENGTHS[len(LENGTHS) // 2]
    train, held = [], []
    for step in ema.steps:
        ema.put(parameters(), step, middle)
        train.append(seen())
        held.append(unseen())
    best = ema.steps[int(np.argmin(held))]
    by_length = {}
    for length in LENGTHS:
        ema.put(parameters(), best, length)
        by_length[length] = unseen() if length != middle else min(held)
    ema.chosen = (best, min(by_length, key=lambda length: by_length[length]))
    return {
        "step": list(ema.steps),
        "train": train,
        "held": held,
        "lengths": [[length, error] for length, error in by_length.items()],
        "chosen_step": ema.chosen[0],
        "chosen_length": ema.chosen[1],
    }
