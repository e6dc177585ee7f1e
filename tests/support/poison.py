"""Generating actors that misbehave on purpose, importable by Ray's worker processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from engine.errors import StorageError
from engine.generation.actor import Order, ShardActor
from engine.generation.generation_worker import Shard, ShardWorker
from engine.generation.requests import Requests
from engine.generation.sample_plan import Plan
from engine.shards.names import PlanFacts
from engine.shards.records import Record
from engine.spec import spec_hash
from engine.storage.store import open_store

POISON = 1


class IdleWorker(ShardWorker):
    """Gives every shard up at once."""

    def draw(self, shard: Shard) -> None:
        """Leave the shard without samples."""
        for position in range(len(shard.rows)):
            self._quarantine(shard, position, "not_drawn", shard.number)


def idle_worker(order: Order, progress: Any = None) -> IdleWorker:
    """A worker without a model, for actors that never draw: it starts in a moment."""
    from engine.conditions import table

    spec, store = order.spec, open_store(order.url)
    conditions = table.load(store, spec)
    return IdleWorker(
        spec,
        store,
        Plan(spec, conditions.labels, conditions.class_names),
        Requests(spec, conditions),
        None,  # type: ignore[arg-type]
        batch_size=1,
        plan_facts=PlanFacts(spec.name, spec.generate.count, spec.generate.shard_size, spec_hash(spec)),
        provenance={},
    )


class IdleActor(ShardActor):
    """Has an idle worker."""

    _build = staticmethod(idle_worker)


class DeadlyActor(IdleActor):
    """Is killed by the kernel whenever it draws shard `POISON`."""

    def _draw(self, shard: Shard) -> None:
        if shard.index == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        super()._draw(shard)


class FrozenActor(IdleActor):
    """Does not come back from shard `POISON` the first time that any of them draws it."""

    def _draw(self, shard: Shard) -> None:
        if shard.index == POISON and self._worker.store.create(".frozen", b""):
            time.sleep(3600)
        super()._draw(shard)


class AsleepActor(IdleActor):
    """Never comes back."""

    def _draw(self, shard: Shard) -> None:
        time.sleep(3600)


class FullDiskActor(IdleActor):
    """Meets a full disk on shard `POISON`."""

    def _make(self, k: int) -> Record:
        if k == POISON:
            raise StorageError("/out", "no space left (0.0 MiB free)", "make room")
        return super()._make(k)


class LoadlessActor(IdleActor):
    """Dies whenever it loads its model."""

    @staticmethod
    def _build(order: Order, progress: Any = None) -> ShardWorker:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError
