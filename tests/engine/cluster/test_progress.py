"""Progress lines: counts, rate since the first update, and an end line."""

from __future__ import annotations

import io
import re
import time

import pytest

from engine.cluster import progress
from engine.cluster.progress import PlainReporter


def test_plain_lines_carry_count_rate_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 20.0, 20.0, 20.0, 40.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock, 60.0))
    out = io.StringIO()
    with PlainReporter(out).task("draw", 100, "images") as task:
        task.update(50)
        task.update(70, loss=0.25)
    lines = out.getvalue().splitlines()
    assert lines[-1].startswith("draw: 70/100 images")
    assert "loss 0.25" in lines[-1]
    assert re.search(r"\d images/s", lines[-1])


def test_rate_leaves_out_what_was_done_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    task = PlainReporter(io.StringIO()).task("draw", 1000)
    task.update(900)
    now = 10.0
    task.update(950)
    assert task.rate == pytest.approx(5.0)


def test_lines_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = io.StringIO()
    task = PlainReporter(out).task("draw", 1000)
    for done in range(1000):
        now += 0.01
        task.update(done)
    assert len(out.getvalue().splitlines()) <= 2


def test_board_is_mirrored_to_its_end(ray_cluster: None) -> None:
    import ray

    from engine.cluster.board import Board, follow

    board = Board.create()

    @ray.remote(num_cpus=0)
    def work(handle: Board) -> None:
        for step in range(1, 6):
            handle.update("fit", step, 5, "steps", loss=1.0 / step)

    out = io.StringIO()
    with follow(board, PlainReporter(out)):
        ray.get(work.remote(board))
        while board.snapshot().get("fit", {}).get("done") != 5:
            time.sleep(0.1)
    assert "fit: 5/5 steps" in out.getvalue()
    assert "loss 0.2" in out.getvalue()
