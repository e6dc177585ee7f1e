"""The command as a user runs it: a process of its own, in a folder of the test's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def mimeo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `mimeo` in `cwd` with 160 columns and one thread; at most 20 minutes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=cwd, env=env, check=False)
