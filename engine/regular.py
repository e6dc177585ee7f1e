"""Files that others have written: regular ones only, of a bounded size, so that no pipe, device or giant is ever waited
for."""

from __future__ import annotations

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

Json = dict[str, Any]  # a JSON object whose keys another program, a model or a user chooses


class NotRegularError(OSError):
    """A pipe, device or folder in the place of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, "not a regular file", str(path))


def opened(path: Path) -> BufferedReader:
    """The file for reading, links followed; NotRegularError where it is none, other OSErrors as `open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularError(path)
    return os.fdopen(descriptor, "rb")


def check(path: Path, limit: int | None = None) -> os.stat_result:
    """Its facts, links followed; OSError where it is missing, no regular file, or larger than `limit` bytes."""
    try:
        facts = path.stat()
    except ValueError as error:  # a NUL in the name
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not stat.S_ISREG(facts.st_mode):
        raise NotRegularError(path)
    if limit is not None and facts.st_size > limit:
        raise _too_large(path, limit)
    return facts


def read(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; OSError with its reason in `strerror` otherwise."""
    with opened(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _too_large(path, limit)
    return data


def read_json(path: Path, limit: int) -> Any:
    """A JSON file's value; OSError as `read`, ValueError where it is no JSON or is nested too deep to be read."""
    try:
        return json.loads(read(path, limit))
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def irregular(folder: Path) -> Path | None:
    """The first entry of a folder that is neither a file nor a folder, such as a pipe, which a library would wait
    for."""
    entries = sorted(folder.iterdir())
    return next((path for path in entries if path.exists() and not (path.is_file() or path.is_dir())), None)


def _too_large(path: Path, limit: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {limit / 2**20:g} MiB", str(path))
