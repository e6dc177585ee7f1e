"""Small results that a node need not find twice, as JSON files in its cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.storage import cache

FOLDER = "notes"


def read(kind: str, key: dict[str, Any]) -> Any:
    """The value noted under `key`, None where there is none that can be read."""
    try:
        note = json.loads(_path(kind, key).read_bytes())
        return note["value"] if note["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write(kind: str, key: dict[str, Any], value: Any) -> None:
    """Note a value, whole or not at all; a cache that cannot be written to is no fault, since the value can be found again."""
    path = _path(kind, key)
    part = path.with_suffix(f".{os.getpid()}.part")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"key": key, "value": value}, indent=1, sort_keys=True))
        part.replace(path)


def once(kind: str, key: dict[str, Any], check: Callable[[], object]) -> None:
    """Run a check, unless it is noted that it has passed with all that `key` names; a check that raises is not noted."""
    if read(kind, key) is not True:
        check()
        write(kind, key, True)


def _path(kind: str, key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache.folder() / FOLDER / f"{kind}-{digest}.json"
