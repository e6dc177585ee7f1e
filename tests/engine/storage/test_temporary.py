"""Temporary folders end with their process: at the end of the block, or when another process finds them after a
kill."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from engine.storage import temporary

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from engine.storage import temporary
with temporary.folder("ray", sys.argv[1]) as folder:
    (folder / "big").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(100)
"""


def holding(root: Path) -> tuple[subprocess.Popen[str], Path]:
    words = [sys.executable, "-c", HOLD, str(root)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def old(path: Path) -> None:
    os.utime(path, (time.time() - 3600,) * 2)


def test_a_folder_is_private_and_gone_after_the_block(tmp_path: Path) -> None:
    with temporary.folder("x", str(tmp_path)) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "inside").mkdir()
    assert not folder.exists()


def test_only_folders_of_dead_processes_are_swept(tmp_path: Path) -> None:
    live, kept = holding(tmp_path)
    dead, left = holding(tmp_path)
    try:
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        foreign = tmp_path / "mimeo-run-link"
        (tmp_path / "precious").mkdir()
        foreign.symlink_to(tmp_path / "precious")
        young = tmp_path / "mimeo-run-young"
        young.mkdir()
        for path in (kept, left, tmp_path / "precious"):
            old(path)
        assert temporary.sweep(tmp_path) == 1
        assert not left.exists()
        assert (kept / "big").exists()
        assert foreign.is_symlink()
        assert young.exists()
    finally:
        live.kill()
        live.wait()
