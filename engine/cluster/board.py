"""Progress from inside Ray workers: a small actor that they update and the driver mirrors while it waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

from engine.cluster.progress import Reporter, Task

POLL_S = 0.5


Fields = dict[str, float | int | str]


class TaskFacts(TypedDict):
    """The newest of a task."""

    done: int
    total: int
    unit: str
    fields: Fields


class _State:
    """The board's content: the newest facts of each task, in the order of their first update."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskFacts] = {}

    def update(self, name: str, done: int, total: int, unit: str, fields: Fields) -> None:
        """Keep the newest facts of a task."""
        self._tasks[name] = {"done": done, "total": total, "unit": unit, "fields": fields}

    def snapshot(self) -> dict[str, TaskFacts]:
        """All tasks as they stand."""
        return self._tasks


class Board:
    """A handle that any worker may use: picklable, fire and forget."""

    def __init__(self, actor: Any, prefix: str = "") -> None:
        self._actor, self._prefix = actor, prefix

    def under(self, prefix: str) -> Board:
        """The same board, with the names of all that is told to it after `prefix`."""
        return Board(self._actor, f"{self._prefix}{prefix} ")

    @classmethod
    def create(cls) -> Board:
        """Start the actor on the driver's node, which outlives the workers' nodes; Ray must be up."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(_State).remote())

    def update(self, name: str, done: int, total: int, unit: str = "steps", **fields: float | int | str) -> None:
        """Report from a worker; costs one small message and never waits."""
        self._actor.update.remote(self._prefix + name, done, total, unit, fields)

    def snapshot(self) -> dict[str, TaskFacts]:
        """All tasks as they stand."""
        import ray

        return ray.get(self._actor.snapshot.remote(), timeout=30)


class BoardReporter(Reporter):
    """A reporter inside a worker: its tasks stand on the board; notes go nowhere."""

    def __init__(self, board: Board) -> None:
        self.board = board

    def task(self, name: str, total: int, unit: str = "images") -> Task:
        """Open a counted task of `total` units."""
        return _BoardTask(self.board, name, total, unit)

    def note(self, text: str) -> None:
        """Nothing."""


class _BoardTask(Task):
    def __init__(self, board: Board, name: str, total: int, unit: str) -> None:
        super().__init__(name, total, unit)
        self._board, self._last = board, 0.0

    def _show(self, fields: dict[str, float | int | str]) -> None:
        if self.done >= self.total or time.monotonic() - self._last >= POLL_S:
            self._board.update(self.name, self.done, self.total, self.unit, **fields)
            self._last = time.monotonic()


@contextmanager
def follow(board: Board, reporter: Reporter) -> Iterator[None]:
    """Mirror the board on the reporter, from a thread, while the block runs; a lost board never ends the run."""
    stop = threading.Event()
    tasks: dict[str, Task] = {}

    def mirror() -> None:
        from ray.exceptions import RayError

        try:
            for name, facts in board.snapshot().items():
                if name not in tasks:
                    tasks[name] = reporter.task(name, facts["total"], facts["unit"])
                if facts["done"] != tasks[name].done or tasks[name].done == 0:
                    tasks[name].update(facts["done"], **facts["fields"])
                    if facts["done"] >= facts["total"]:
                        tasks[name].close()
        except RayError:
            return

    def loop() -> None:
        while not stop.wait(POLL_S):
            mirror()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=35)
        mirror()
        for task in tasks.values():
            task.close()
