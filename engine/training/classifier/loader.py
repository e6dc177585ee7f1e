"""Batches for a classifier: drawn by the mixing plan, gathered from shared blocks, decoded and augmented, a few steps
ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.shards.mixing import Mixture
from engine.spec.classifier import TrainSpec
from engine.training.classifier.augment import Augment
from engine.training.classifier.classifier_arms import Part
from engine.training.classifier.ingest import DECODED_SIDE, Images

AHEAD = 2


@dataclass(frozen=True)
class Feed:
    """Everything that a batch depends on but the step: a pure function of it, which any process may compute."""

    sets: Mapping[str, Images]
    parts: Sequence[Part]
    mixture: Mixture
    augment: Augment

    @classmethod
    def of(
        cls, spec: TrainSpec, size: int, seed: int, sets: Mapping[str, Images], parts: Sequence[Part], mixture: Mixture
    ) -> Feed:
        """The feed of one arm and seed."""
        return cls(sets, parts, mixture, Augment(spec, size, seed))

    def rows(self, step: int, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """(source, row of its set) of this rank's part of the global batch of a step."""
        draw = self.mixture.draw(step)
        source, row = draw.source[part], draw.row[part].copy()
        for number, own in enumerate(self.parts):
            mine = source == number
            row[mine] = own.rows[row[mine]]
        return source, row

    def raw(self, step: int, part: slice, pool: ThreadPoolExecutor | None = None) -> tuple[Tensor, Tensor]:
        """(pixels (b, H, H, 3) uint8, labels (b,) int64) of a step, not augmented."""
        source, row = self.rows(step, part)
        names = [self.parts[number].of for number in source.tolist()]
        side = self.sets[self.parts[0].of].side
        pixels, labels = np.empty((len(row), side, side, 3), np.uint8), np.empty(len(row), np.int64)
        for name in dict.fromkeys(names):
            mine = np.array([own == name for own in names])
            self.sets[name].put(row[mine], pixels, np.flatnonzero(mine), pool)
            labels[mine] = self.sets[name].labels[row[mine]]
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    def finish(self, raw: tuple[Tensor, Tensor], step: int, part: slice) -> tuple[Tensor, Tensor]:
        """Augment what `raw` gave: (b, 3, size, size) uint8 and labels."""
        return self.augment(raw[0].permute(0, 3, 1, 2), step, part.start), raw[1]


class Loader:
    """This rank's batches in rising order of steps.

    Images above 64 px are gathered and decoded by threads a few steps ahead; random transforms run in the calling
    thread, because torch's generator is one a process. With `loaders` actors whole batches are made in these processes
    instead; the batches are the same.
    """

    def __init__(self, feed: Feed, part: slice, *, loaders: int = 0) -> None:
        self._feed, self._part = feed, part
        encoded = any(images.side > DECODED_SIDE for images in feed.sets.values())
        threads = min(16, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads) if encoded and not loaders else None
        self._ahead = ThreadPoolExecutor(AHEAD) if self._pool else None
        self._actors = _actors(feed, part, loaders) if loaders else []
        self._waiting: deque[tuple[int, Any]] = deque()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(b, 3, size, size) uint8 pixels and (b,) int64 labels of this rank's part of the batch of a step."""
        if not self._actors and self._ahead is None:
            return self._feed.finish(self._feed.raw(step, self._part), step, self._part)
        if self._waiting and self._waiting[0][0] != step:
            self._waiting.clear()
        following = self._waiting[-1][0] + 1 if self._waiting else step
        depth = AHEAD * max(1, len(self._actors))
        for number in range(following, step + depth + 1):
            self._waiting.append((number, self._ask(number)))
        answer = self._waiting.popleft()[1]
        if self._ahead is not None:
            return self._feed.finish(answer.result(), step, self._part)
        import ray

        pixels, labels = ray.get(answer)
        return torch.from_numpy(pixels.copy()), torch.from_numpy(labels.copy())

    def close(self) -> None:
        """End threads and actors."""
        import ray

        for pool in (self._ahead, self._pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _ask(self, step: int) -> Any:
        if self._ahead is not None:
            return self._ahead.submit(self._feed.raw, step, self._part, self._pool)
        return self._actors[step % len(self._actors)].batch.remote(step)


class _Maker:
    """A process that makes whole batches."""

    def __init__(self, feed: Feed, part: slice) -> None:
        torch.set_num_threads(1)
        self._feed, self._part = feed, part

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = self._feed.finish(self._feed.raw(step, self._part), step, self._part)
        return pixels.numpy(), labels.numpy()


def _actors(feed: Feed, part: slice, count: int) -> list[Any]:
    import ray

    made = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Maker)
    return [made.remote(feed, part) for _ in range(count)]
