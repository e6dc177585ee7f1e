"""Progress lines: counts, rate since the first update, and an end line."""

from __future__ import annotations

import io
import re
import time

import pytest

from engine.cluster import progress
from engine.cluster.progress import PlainReporter


def test_plain_lines_carry_count_rate_and_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = io.StringIO()
    with PlainReporter(out).task("draw", 100, "images") as task:
        for done in (50, 60, 70):
            task.update(done, loss=0.25)
            now += 20
    assert re.fullmatch(r"draw: 70/100 images, 0.5 images/s, 1m00s left  loss 0.25", out.getvalue().splitlines()[-1])


def test_rate_leaves_out_what_was_done_before_and_the_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    task = PlainReporter(io.StringIO()).task("draw", 1000)
    task.update(900)
    for now, done in ((300.0, 900), (400.0, 910), (410.0, 960), (415.0, 985)):  # noqa: B007 - the clock reads `now`
        task.update(done)
    assert task.rate == pytest.approx(75 / 15)


def test_work_that_is_done_at_one_stroke_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    task = PlainReporter(io.StringIO()).task("draw", 100)
    task.update(0)
    now = 20.0
    task.update(100)
    assert task.rate == pytest.approx(5.0)


def test_the_last_line_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = io.StringIO()
    with PlainReporter(out).task("draw", 10) as task:
        for done in (0, 5, 10):
            now += 20
            task.update(done)
        task.close()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["0/10", "5/10", "10/10"]


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
