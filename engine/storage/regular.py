"""Files that others have written: regular ones only, of a bounded size, so that no pipe, device or giant is ever waited for."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any


def check(path: Path, limit: int | None = None) -> os.stat_result:
    """Its facts, links followed; OSError where it is missing, no regular file, or larger than `limit` bytes."""
    try:
        facts = path.stat()
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    return _fitting(path, facts, limit)


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; OSError with its reason in `strerror` otherwise."""
    check(path, limit)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        _fitting(path, os.fstat(descriptor), limit)
        return file.read(limit + 1)


def read_json(path: Path, limit: int) -> Any:
    """A JSON file's value; OSError as `read`, ValueError where it is no JSON or is nested too deep to be read."""
    try:
        return json.loads(read(path, limit))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def irregular(folder: Path) -> Path | None:
    """The first entry of a folder that is neither a file nor a folder, such as a pipe, which a library would wait for."""
    entries = sorted(folder.iterdir())
    return next((path for path in entries if path.exists() and not (path.is_file() or path.is_dir())), None)


def _fitting(path: Path, facts: os.stat_result, limit: int | None) -> os.stat_result:
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if limit is not None and facts.st_size > limit:
        raise OSError(errno.EFBIG, f"it has {facts.st_size} bytes, more than the {limit} that it may have", str(path))
    return facts
