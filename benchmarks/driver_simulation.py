"""A driver without a cluster: the records of actors that do not exist, through the driver's own code, for its CPU time
and memory.

`pool.records`, `Watch`, `Budget` and the board's content are the engine's; only `pool._run`, which is Ray Data, gives
rows that were made before. What Ray itself costs a driver (messages, tasks, nodes) is therefore not in it.
"""

from __future__ import annotations

import gc
import io
import json
import pickle
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks.sleeping import resident_mib
from engine.cluster.board import _State
from engine.cluster.progress import PlainReporter
from engine.generation import actor_pool
from engine.generation.gate import Budget
from engine.generation.generation_watch import Watch
from engine.shards.records import Record
from engine.spec.recipe import GateSpec

SHARD = 1000


class LocalBoard:
    """The board's content in this process, without the actor that holds it in a run."""

    def __init__(self) -> None:
        self._state = _State()

    def update(self, name: str, done: int, total: int, unit: str = "steps", **fields: float | int | str) -> None:
        """What a worker says."""
        self._state.update(name, done, total, unit, fields)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """All actors as they stand, copied by pickle, as a message would."""
        copied: dict[str, dict[str, Any]] = pickle.loads(pickle.dumps(self._state.snapshot()))
        return copied


class Order:
    """Nothing of an order is read where no pool is started."""


def record(k: int, node: int) -> Record:
    """A record as a worker of a node sends it."""
    digest = f"{k:064x}"
    how = {"attempt": 1, "host": f"node-{node:03d}", "pid": 1000 + node, "seconds": 60.0, "batch_size": 32}
    name = f"simulated-{k:06d}"
    return Record(name, k, k * SHARD, SHARD, SHARD, 63 << 20, digest, digest, (), device="cuda", **how)  # type: ignore[arg-type]


def answers(todo: list[actor_pool.Row], nodes: int) -> Iterator[actor_pool.Row]:
    """The rows that come back for what was asked."""
    for number, row in enumerate(todo):
        texts = [record(k, number % nodes).to_json().decode() for k in json.loads(row["shards"])]
        yield {"asked": row["shards"], "records": json.dumps(texts), "fault": ""}


def simulate(nodes: int, actors_per_node: int, records: int) -> dict[str, Any]:
    """CPU time a record and a look at the board, and memory, of a driver with so many actors and shards."""
    actors, board, reporter = nodes * actors_per_node, LocalBoard(), PlainReporter(io.StringIO())
    todo = actor_pool.rows(list(range(records)))
    came = list(answers(todo, nodes))
    gc.collect()
    before = resident_mib()
    budget = Budget(GateSpec(), records * SHARD)
    with reporter.task("generate", budget.count) as task:
        watch = Watch(reporter, task, board, 0, 0)  # type: ignore[arg-type]
        began = time.process_time()
        with mock.patch.object(actor_pool, "_run", return_value=iter(came)):
            for made in actor_pool.records(Order(), todo, board, watch.stuck, reporter.note):  # type: ignore[arg-type]
                watch.add(made)
                budget.add(made.planned, [entry.reason for entry in made.quarantined])
        cpu = time.process_time() - began
        gc.collect()
        kept = resident_mib() - before
        looks = _looks(watch, board, actors, records)
    assert budget.done == records * SHARD
    return {
        "simulated": True,
        "nodes": nodes,
        "actors": actors,
        "records": records,
        "samples": records * SHARD,
        "cpu_us_per_record": 1e6 * cpu / records,
        "cpu_ms_per_1000_samples": 1e3 * cpu / records * 1000 / SHARD,
        "cpu_ms_per_look": 1e3 * looks,
        "bytes_per_record": max(0.0, kept) * 2**20 / records,
        "grown_mib": kept,
    }


def _looks(watch: Watch, board: LocalBoard, actors: int, records: int, times: int = 5) -> float:
    """CPU seconds of one look at the board, which the driver takes every second, with every actor half-way."""
    for number in range(actors):
        board.update(f"{number:032x}", SHARD // 2, SHARD, "images", shard=records + number)
    watch._look()  # the first one imports
    began = time.process_time()
    for _ in range(times):
        watch._look()
        watch._show()
    return (time.process_time() - began) / times
