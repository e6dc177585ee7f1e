"""What the user sees while shards are drawn: counted records, samples of the shards in the making, and a word when nothing moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engine.shards.records import Record

if TYPE_CHECKING:
    from engine.cluster.board import Board
    from engine.cluster.progress import Reporter, Task

POLL_S = 1.0
SILENCE_S = 120.0


class Watch:
    """Adds up finished shards and, from the board, the samples of the unfinished ones; shows the sum and notes silence."""

    def __init__(self, reporter: Reporter, task: Task, board: Board, done: int, quarantined: int) -> None:
        self._reporter, self._task, self._board = reporter, task, board
        self._done, self._quarantined = done, quarantined
        self._finished: set[int] = set()
        self._shown, self._moved = -1, time.monotonic()
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        """Count a finished shard."""
        with self._lock:
            self._done += record.planned
            self._quarantined += len(record.quarantined)
            self._finished.add(record.index)
        self._show(0)

    @contextmanager
    def running(self) -> Iterator[Watch]:
        """Poll the board, from a thread, while the block runs."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(POLL_S):
                self._show(self._in_the_making())

        thread = threading.Thread(target=loop, daemon=True, name="watch")
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(timeout=15)

    def _in_the_making(self) -> int:
        from ray.exceptions import RayError

        try:
            board = self._board.snapshot()
        except RayError:
            return 0
        with self._lock:
            return sum(facts["done"] for facts in board.values() if facts["fields"]["shard"] not in self._finished)

    def _show(self, making: int) -> None:
        now = time.monotonic()
        with self._lock:
            total = self._done + making
            if total > self._shown:
                self._shown, self._moved = total, now
                self._task.update(total, quarantined=self._quarantined)
            elif now - self._moved >= SILENCE_S:
                self._moved = now
                self._reporter.note(
                    f"generate: no new sample for {SILENCE_S:.0f} s; workers may be loading, waiting for nodes, or stuck"
                )
