"""The distance between sets of images by its closed form, and a short study from start to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import approximate_modes as modes
from benchmarks import table
from tests.support.tiers import slow

ROOT = Path(__file__).resolve().parents[2]


def test_the_distance_of_a_scaled_and_shifted_copy() -> None:
    draw = np.random.default_rng(0)
    images = draw.normal(size=(300, 7)) @ draw.normal(size=(7, 7))
    assert modes.frechet(images, images) == pytest.approx(0, abs=1e-9)
    # covariances C and s^2 C share their directions: the distance is |means apart|^2 + (1 - s)^2 tr C
    other = 1.7 * images + 0.5
    expected = np.square(0.7 * images.mean(0) + 0.5).sum() + 0.7**2 * np.trace(np.cov(images, rowvar=False))
    assert modes.frechet(images, other) == pytest.approx(float(expected))


@slow
def test_a_short_study_has_every_mode(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.approximate_modes", "--quick", "--results", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(out.read_text())["results"]
    assert {row["case"] for row in rows} >= set(modes.MODES)
    rates = {row["case"]: row["value"] for row in rows if row["what"].startswith("times")}
    assert rates["exact"] == 1
    assert rates["2 steps"] > 1.5
    line = next(line for line in table.LINES if line.name == "approximate_modes")
    assert line.figure(rows)
