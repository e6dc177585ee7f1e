"""Actors that sleep instead of drawing: the engine's own pool, shards, records and board around a device that costs no
CPU.

`SleepingActor` is the engine's actor with another worker inside: its sampler sleeps for each batch and hands out a
fixed small picture. Neither torch nor diffusers is imported there. Actors wait for each other before the first shard,
so that starting them is not measured; the first to come may be made slower than the rest.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.generation.actor import Order, ShardActor, provenance
from engine.generation.generation_worker import Shard, ShardWorker
from engine.generation.sample_plan import Plan
from engine.shards.names import PlanFacts
from engine.spec import spec_hash
from engine.storage.store import open_store

BATCH_S = 0.1
BARRIER = "barrier"
SLOW = "slow"  # a file with the factor by which the first actor sleeps longer
WAIT_S = 600.0


@dataclass(frozen=True)
class Picture:
    """What a sampler gives for a sample."""

    pixels: NDArray[np.uint8]
    reason: str | None = None


class SleepingSampler:
    """A device that works `seconds` on a batch, one after the other, and takes nothing of the host's time."""

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._picture = Picture(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))

    def stream(self, batches: Iterable[Sequence[Any]]) -> Iterator[list[Picture]]:
        """One batch after another, each begun before the one before it is handed over, as the engine does on CUDA."""
        ready, begun = 0.0, None
        for requests in batches:
            ready = max(ready, time.monotonic()) + self._seconds
            if begun is not None:
                yield self._wait(*begun)
            begun = ready, len(requests)
        if begun is not None:
            yield self._wait(*begun)

    def _wait(self, moment: float, count: int) -> list[Picture]:
        time.sleep(max(0.0, moment - time.monotonic()))
        return [self._picture] * count


class NoRequests:
    """Stands for `Requests`: asks for nothing but a seed, and never imports the sampler."""

    needs_real_pixels = False

    def __init__(self, conditions: Any) -> None:
        self.conditions = conditions

    def make(self, rows: Any, facts: Any, positions: Any, seeds: Sequence[int], pixels: Any, sampler: Any) -> list[int]:
        """The seeds."""
        return list(seeds)

    def clip_scores(self, drawn: Sequence[Any], asked: Sequence[Any]) -> list[None]:
        """None for each."""
        return [None] * len(drawn)


def build_sleeping(order: Order, progress: Any = None) -> ShardWorker:
    """The engine's worker around a sleeping sampler; returns when all actors of the order have come."""
    from engine.conditions import table

    spec, store = order.spec, open_store(order.url)
    conditions = table.load(store, spec)
    plan = Plan(spec, conditions.labels, conditions.class_names)
    factor = meet(Path(order.url), order.actors)
    worker: Any = ShardWorker
    made: ShardWorker = worker(
        spec,
        store,
        plan,
        NoRequests(conditions),
        SleepingSampler(BATCH_S * factor, spec.images.size),
        batch_size=spec.resources.batch_size,
        plan_facts=PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec)),
        provenance=provenance(order),
        progress=progress,
    )
    return made


def meet(folder: Path, actors: int) -> float:
    """Wait until `actors` of them have called this; returns by which factor this one sleeps longer."""
    place = folder / BARRIER
    place.mkdir(exist_ok=True)
    (place / str(os.getpid())).touch()
    deadline = time.monotonic() + WAIT_S
    while len(came := sorted(path.name for path in place.iterdir())) < actors:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(came)} of {actors} actors came within {WAIT_S:.0f} s")
        time.sleep(0.05)
    slow = folder / SLOW
    return float(slow.read_text()) if slow.exists() and came[0] == str(os.getpid()) else 1.0


class SleepingActor(ShardActor):
    """Writes with its last shard what it takes of memory, and whether torch was imported."""

    _build = staticmethod(build_sleeping)

    def _draw(self, shard: Shard) -> None:
        super()._draw(shard)
        told = f"{resident_mib():.1f} {int('torch' in sys.modules)} {time.process_time():.3f}\n"
        Path(self._order.url, BARRIER, str(os.getpid())).write_text(told)


def resident_mib(pid: int | str = "self") -> float:
    """Resident memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024
