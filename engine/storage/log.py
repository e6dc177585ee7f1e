"""A file for what no user wants to read on a terminal: tracebacks, and what Ray says when it does not start."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from engine import __version__
from engine.storage import node_cache
from engine.text import printable, redacted

FOLDER = "logs"


def write(text: str) -> Path | None:
    """Keep a text, without secrets, in a new file that only this user can read; its path, None where no folder takes
    it.

    It lies below the node's cache, or where that cannot be written in the folder for temporary files.
    """
    facts = f"mimeo {__version__}, Python {sys.version.split()[0]}, {sys.platform}"
    data = printable(redacted(f"{facts}\n{' '.join(sys.argv)}\n\n{text}\n")).encode(errors="backslashreplace")
    for folder in (_own, tempfile.gettempdir):
        with suppress(OSError, RuntimeError):  # RuntimeError: there is no home
            descriptor, path = tempfile.mkstemp(".log", "mimeo-", folder())
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            return Path(path)
    return None


def _own() -> str:
    path = node_cache.folder() / FOLDER
    path.mkdir(0o700, parents=True, exist_ok=True)
    return str(path)
