"""Sleeping actors go the engine's way, the driver's simulation counts what it is fed, and a profile's parts add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks import actors_scaling, profile, sleeping
from benchmarks.driver_simulation import answers, simulate
from engine.generation import actor_pool
from engine.shards.records import Record
from tests.support.tiers import slow


def test_the_first_actor_to_come_is_the_slow_one_and_nobody_begins_before_all_are_there(tmp_path: Path) -> None:
    (tmp_path / sleeping.SLOW).write_text("3.0")
    (tmp_path / sleeping.BARRIER).mkdir()
    factors: list[float] = []
    waiting = threading.Thread(target=lambda: factors.append(sleeping.meet(tmp_path, 2)))
    waiting.start()
    waiting.join(timeout=0.3)
    assert waiting.is_alive()
    (tmp_path / sleeping.BARRIER / str(10 * os.getpid())).touch()
    waiting.join(timeout=20)
    assert factors == [3.0]


def test_what_a_sleeping_actor_imports_has_no_torch() -> None:
    code = (
        "import sys, benchmarks.sleeping, engine.conditions.table; print('torch' in "
        "sys.modules, 'diffusers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_the_simulated_driver_reads_whole_records() -> None:
    rows = list(answers(actor_pool.rows(list(range(5))), 2))
    texts = [text for row in rows for text in json.loads(row["records"])]
    found = [Record.from_json(text.encode(), "here") for text in texts]
    assert [(one.index, one.host) for one in found] == [(k, f"node-{k % 2:03d}") for k in range(5)]


def test_the_simulation_says_that_it_is_one() -> None:
    found = simulate(4, 2, 300)
    assert found["simulated"]
    assert (found["actors"], found["samples"]) == (8, 300_000)
    assert found["cpu_us_per_record"] > 0


def test_the_parts_of_a_profile_add_up_to_the_wall_time() -> None:
    spent = {
        "draw": 8.0,
        "pipeline": 5.0,
        "vae": 2.0,
        "gate": 0.5,
        "plan": 0.25,
        "publish": 0.5,
        "gap": 0.25,
        "wall": 10.0,
    }
    found = profile.parts(spent)
    assert sum(found[name] for name in profile.PARTS) == pytest.approx(10.0)
    assert (found["publish"], found["plan"]) == (0.5, 0.25)
    assert found["around the model"] == 1.0
    assert found["other"] == pytest.approx(1.25), "planning and publishing are beside the drawing"


@slow
def test_a_short_profile(ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit):
        profile.main(["--quick", "--results", str(out)])
    (row,) = json.loads(out.read_text())["results"]
    assert row["shards"] == 2
    assert sum(row["shares"][name] for name in profile.PARTS) == pytest.approx(1.0)
    assert all(share >= 0 for share in row["shares"].values())
    assert 0 < row["share"] < 1


@slow
def test_a_short_scaling(ray_cluster: None, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit):
        actors_scaling.main(["--quick", "--out", str(out)])
    found = json.loads(out.read_text())
    *rows, one_slow, simulated = found["results"]
    assert [(row["actors"], row["used"]) for row in rows] == [(1, 1), (2, 2)]
    for row in rows:
        assert row["of_sleep"] <= 1.0  # nobody is faster than the sleep
    assert one_slow["ratio"] >= 1.0
    assert simulated["records"] == 5000
