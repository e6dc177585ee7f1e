"""Generation without a generator: the engine's actor whose sampler answers at once and whose images are encoded
already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.generation import generation_worker
from engine.generation.actor import Order, ShardActor, build_worker
from engine.images.encode import encode
from engine.spec import RunSpec, validate

if TYPE_CHECKING:
    from engine.diffusion.sampler import Drawn, Request
    from engine.generation.generation_worker import Progress, ShardWorker

SIZE = 8
BATCH = 128
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
IMAGE = encode(PIXELS, "jpg", 95)


class NullSampler:
    """Stands where the sampler stands and gives the same pixels to every request."""

    def draw(self, requests: Sequence[Request]) -> list[Drawn]:
        """One result for each request."""
        from engine.diffusion.sampler import Drawn

        return [Drawn(PIXELS)] * len(requests)

    def stream(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Drawn]]:
        """One batch after another."""
        yield from map(self.draw, batches)


def build_null(order: Order, progress: Progress | None = None) -> ShardWorker:
    """The real worker, its model loaded, with the null sampler in place and the finished JPEG for every image."""
    made = build_worker(order, progress)
    made.sampler = NullSampler()  # type: ignore[assignment]
    generation_worker.encode = lambda pixels, format, quality: IMAGE  # in the actor's process alone
    return made


class NullActor(ShardActor):
    """Makes shards of what costs nothing."""

    _build = staticmethod(build_null)


def make_spec(checkpoint: Path, count: int, shard_size: int, actors: int, name: str = "null") -> RunSpec:
    """A run of tiny samples from a checkpoint of random weights."""
    recipe: dict[str, Any] = {
        "name": name,
        "source": {"kind": "digits"},
        "images": {"size": SIZE},
        "split": {"train": 100, "validation": 0, "test": 100},
        "model": {"checkpoint": str(checkpoint)},
        "conditions": {"prompt": "photo of digit {class}"},
        "generate": {"count": count, "shard_size": shard_size, "num_inference_steps": 3, "format": "jpg"},
        "resources": {"device": "cpu", "actors": actors, "batch_size": BATCH, "cpus_per_actor": 1, "threads": 1},
    }
    return validate(recipe)
