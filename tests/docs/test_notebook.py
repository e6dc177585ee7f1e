"""The notebook in examples/ runs from its first cell to its last, made small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(1800)
def test_the_notebook_runs_as_written(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "examples/from_a_folder.ipynb").read_text())["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert "STEPS = 400" in code
    small = code.replace("STEPS = 400", "STEPS = 8").replace("steps: 200, seeds", "steps: 10, seeds")
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{small}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "400 samples in 2 shards, faults: []" in done.stdout
    assert "synthetic_2x" in done.stdout
    assert "copy share at 2x" in done.stdout
