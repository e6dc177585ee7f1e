"""Generating actors that misbehave on purpose, importable by Ray's worker processes."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from engine.errors import StorageError
from engine.generation.actor import Order, ShardActor
from engine.generation.plan import Plan
from engine.generation.requests import Requests
from engine.generation.worker import ShardWorker
from engine.shards.names import PlanFacts
from engine.shards.records import Record
from engine.spec import spec_hash
from engine.storage.store import open_store

POISON = 1


def idle_worker(order: Order, progress: Any = None) -> ShardWorker:
    """A worker without a model, for actors that never draw: it starts in a moment."""
    from engine.conditions import table

    spec, store = order.spec, open_store(order.url)
    conditions = table.load(store, spec)
    return ShardWorker(
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
    """Gives every shard up at once."""

    _build = staticmethod(idle_worker)

    def _make(self, k: int) -> Record:
        return self._worker.give_up(k, "not_drawn", 1)


class DeadlyActor(IdleActor):
    """Is killed by the kernel whenever it works on shard `POISON`."""

    def _make(self, k: int) -> Record:
        if k == POISON:
            self._worker.make = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
            return ShardActor._make(self, k)
        return super()._make(k)


class FrozenActor(IdleActor):
    """Does not come back from shard `POISON` the first time that any of them works on it."""

    def _make(self, k: int) -> Record:
        if k == POISON and self._worker.store.create(".frozen", b""):
            time.sleep(3600)
        return super()._make(k)


class AsleepActor(IdleActor):
    """Never comes back."""

    def _make(self, k: int) -> Record:
        time.sleep(3600)
        raise AssertionError


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
