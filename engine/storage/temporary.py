"""Temporary folders that end with their process, whatever ends it: the next one sweeps what a killed one has left."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "mimeo-run-"
YOUNG_S = 60.0  # a folder is made an instant before it is locked


@contextmanager
def folder(name: str, root: str | None = None) -> Iterator[Path]:
    """A new folder of mode 0700 below `root`, by default the system's folder for temporary files; gone after the
    block."""
    above = Path(root or tempfile.gettempdir())
    sweep(above)
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-", dir=above))
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(root: Path) -> int:
    """Remove this user's folders whose process has died: their lock is free; returns how many."""
    swept = 0
    for path in root.glob(f"{PREFIX}*"):
        with suppress(OSError):
            facts = path.lstat()
            if (
                not stat.S_ISDIR(facts.st_mode)
                or facts.st_uid != os.geteuid()
                or time.time() - facts.st_mtime < YOUNG_S
            ):
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
                swept += 1
            finally:
                os.close(descriptor)
    return swept
