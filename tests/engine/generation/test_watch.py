"""What the user sees of a running job: sums that never count a shard twice, and a word when nothing moves."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest

from engine.cluster.progress import PlainReporter, Task
from engine.generation import generation_watch as watch_module
from engine.generation.generation_watch import Watch
from engine.shards.records import Record
from engine.shards.writer import Quarantined


class Noted(Task):
    """A task that keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("generate", 100, "images")
        self.updates: list[tuple[int, Any]] = []

    def update(self, done: int, **fields: float | int | str) -> None:
        self.updates.append((done, fields["quarantined"]))


class Snapshots:
    """A board with fixed facts: (shard, samples drawn) of each actor."""

    def __init__(self, *entries: tuple[int, int]) -> None:
        self.entries = entries

    def snapshot(self) -> dict[str, dict[str, Any]]:
        return {f"a{n}": {"done": done, "fields": {"shard": k}} for n, (k, done) in enumerate(self.entries)}


def record(k: int, quarantined: int = 0) -> Record:
    entries = tuple(Quarantined(10 * k + i, 0, "x", 3) for i in range(quarantined))
    return Record(f"s-{k:06d}", k, 10 * k, 10, 10 - quarantined, 1, "", "", entries)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "POLL_S", 0.01)


def test_records_add_up_from_what_was_done_before() -> None:
    task = Noted()
    watch = Watch(PlainReporter(io.StringIO()), task, Snapshots(), done=20, quarantined=1)
    watch.add(record(4))
    watch.add(record(3, quarantined=2))
    assert task.updates == [(30, 1), (40, 3)]


def test_samples_in_the_making_count_until_their_shard_is_recorded() -> None:
    task = Noted()
    watch = Watch(PlainReporter(io.StringIO()), task, Snapshots((4, 6), (7, 3)), done=0, quarantined=0)
    with watch.running():
        wait_for(lambda: task.updates == [(9, 0)])
        watch.add(record(4))
        wait_for(lambda: task.updates[-1] == (13, 0))
    assert [done for done, _ in task.updates] == sorted(done for done, _ in task.updates)


def test_silence_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SILENCE_S", 0.2)
    said = io.StringIO()
    watch = Watch(PlainReporter(said), Noted(), Snapshots(), done=0, quarantined=0)
    with watch.running():
        wait_for(lambda: "no new sample" in said.getvalue())
    assert said.getvalue().count("\n") <= 2


def test_stuck_once_nothing_moved_for_longer_than_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of its own: loading may take long, then the longest silence decides; a new pool may load again."""
    now = 0.0
    monkeypatch.setattr(watch_module.time, "monotonic", lambda: now)
    watch = Watch(PlainReporter(io.StringIO()), Noted(), Snapshots(), done=0, quarantined=0)
    now = 1700.0
    assert not watch.stuck()
    watch.add(record(0))
    now = 1740.0
    watch.add(record(1))  # 40 s are usual
    now = 1740.0 + 199
    assert not watch.stuck()
    now = 1740.0 + 201
    assert watch.stuck()
    now += 1700.0
    assert not watch.stuck()


def test_another_actor_on_the_same_shard_is_movement() -> None:
    task, board = Noted(), Snapshots((4, 6))
    watch = Watch(PlainReporter(io.StringIO()), task, board, done=0, quarantined=0, stall=0.0)
    watch._look()
    watch._show()
    assert watch.stuck()
    board.entries = ((4, 6), (4, 2))  # of a frozen worker, and of the one in its place
    watch._look()
    watch._show()
    assert watch._moved > 0
    assert not watch._loading
    assert task.updates == [(6, 0)]
