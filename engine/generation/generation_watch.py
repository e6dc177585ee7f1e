"""What the user sees while shards are drawn: counted records, samples of the shards in the making, and a word when
nothing moves."""

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
SILENCE_S = 120.0  # without a new sample is worth a word
LOADING_S = 1800.0  # workers may take so long to fetch and load a model
PATIENCE = 5.0  # times the longest silence yet, where samples are slower than that


class Watch:
    """Adds up finished shards and, from the board, the samples of the unfinished ones; shows the sum and notes
    silence."""

    def __init__(
        self, reporter: Reporter, task: Task, board: Board, done: int, quarantined: int, stall: float = SILENCE_S
    ) -> None:
        self._reporter, self._task, self._board = reporter, task, board
        self._done, self._quarantined = done, quarantined
        self._finished: set[int] = set()
        self._making: dict[str, tuple[int, int]] = {}
        self._shown = -1
        self._moved = self._noted = time.monotonic()
        self._loading, self._longest, self._stall = True, 0.0, stall
        self._lock = threading.Lock()

    def add(self, record: Record) -> None:
        """Count a finished shard."""
        with self._lock:
            self._done += record.planned
            self._quarantined += len(record.quarantined)
            self._finished.add(record.index)
            self._move()
        self._show()

    def stuck(self) -> bool:
        """Whether nothing has moved for `stall` seconds, or five times the longest silence yet; a new pool may load
        again."""
        with self._lock:
            limit = LOADING_S if self._loading else max(self._stall, PATIENCE * self._longest)
            if time.monotonic() - self._moved < limit:
                return False
            self._moved, self._loading = time.monotonic(), True
            return True

    @contextmanager
    def running(self) -> Iterator[Watch]:
        """Poll the board, from a thread, while the block runs."""
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(POLL_S):
                self._look()
                self._show()

        thread = threading.Thread(target=loop, daemon=True, name="watch")
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(timeout=15)

    def _look(self) -> None:
        """See from the board which shard each actor makes, and how far it is."""
        from ray.exceptions import RayError

        try:
            board = self._board.snapshot()
        except RayError:
            return
        making = {name: (int(facts["fields"]["shard"]), facts["done"]) for name, facts in board.items()}
        with self._lock:
            if making != self._making:
                self._making = making
                self._move()

    def _move(self) -> None:
        """Something has moved; how long nothing did tells what is usual, unless models were loaded meanwhile."""
        now = time.monotonic()
        if not self._loading:
            self._longest = max(self._longest, now - self._moved)
        self._moved, self._loading = now, False

    def _show(self) -> None:
        with self._lock:
            shards: dict[int, int] = {}
            for shard, done in self._making.values():
                if shard not in self._finished:
                    shards[shard] = max(done, shards.get(shard, 0))
            total, now = self._done + sum(shards.values()), time.monotonic()
            if total > self._shown:
                self._shown, self._noted = total, now
                self._task.update(total, quarantined=self._quarantined)
            elif now - self._noted >= SILENCE_S:
                self._noted = now
                self._reporter.note(
                    f"generate: no new sample for {SILENCE_S:.0f} s; workers may be loading, waiting for "
                    "nodes, or stuck"
                )
