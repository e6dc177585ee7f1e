"""Processes that hold an output: `python -m tests.support.holders URL [fork]`; they say "held" and wait to be
killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.storage.lock import hold
from engine.storage.store import open_store

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def holding(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `url`; yields it once it says so, and kills it (with -9) at the end."""
    command = [sys.executable, "-m", "tests.support.holders", url, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its child too
        process.communicate()


if __name__ == "__main__":
    with hold(open_store(sys.argv[1]), "mimeo generate"):
        if "fork" not in sys.argv or os.fork() == 0:  # the child speaks: by then it has let go of its copy of the lock
            print("held", flush=True)
        time.sleep(600)
