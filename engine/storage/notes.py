"""Small results that a node need not find twice, as JSON files in its cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.storage import node_cache

FOLDER = "notes"
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def read(kind: str, key: Mapping[str, object]) -> Any:
    """The value noted under `key`, None where there is none that this user has written and nobody else can change."""
    try:
        with os.fdopen(os.open(_path(kind, key), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as file:
            facts = os.fstat(file.fileno())
            if facts.st_uid != os.geteuid() or facts.st_mode & OTHERS or not stat.S_ISREG(facts.st_mode):
                return None
            note = json.load(file)
        return note["value"] if note["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write(kind: str, key: Mapping[str, object], value: Any) -> None:
    """Note a value, whole or not at all; a cache that cannot be written to is no fault, since the value can be found
    again."""
    path = _path(kind, key)
    part = path.with_suffix(f".{os.getpid()}.{time.time_ns()}.part")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump({"key": key, "value": value}, file, indent=1, sort_keys=True)
        part.replace(path)


def found(kind: str, key: Mapping[str, object], find: Callable[[], Any], *, anew: bool = False) -> Any:
    """The value noted under `key`; where there is none, or `anew`, what `find` gives, which is noted.

    Of several processes that look for the same value one does, and the others wait for it.
    """
    with _alone(kind, key):
        value = None if anew else read(kind, key)
        if value is None:
            value = find()
            write(kind, key, value)
    return value


def once(kind: str, key: Mapping[str, object], check: Callable[[], object]) -> None:
    """Run a check, unless it is noted that it has passed with all that `key` names; a check that raises is not
    noted."""
    if read(kind, key) is not True:
        check()
        write(kind, key, True)


@contextmanager
def _alone(kind: str, key: Mapping[str, object]) -> Iterator[None]:
    """Hold this user's lock on a note, which ends with the process; where there can be none, go on without."""
    path = _path(kind, key).with_suffix(f".{os.geteuid()}.lock")
    with ExitStack() as held:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(
                os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "w")
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _path(kind: str, key: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return node_cache.folder() / FOLDER / f"{kind}-{digest}.json"
