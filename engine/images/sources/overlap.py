"""Outputs apart from real images: none lies where a source would read its shards, or its folders, as real images later."""

from __future__ import annotations

import os

from engine.errors import ConfigError
from engine.spec.models import FolderSource, ParquetSource, Source, WebDatasetSource
from engine.storage.paths import WILD
from engine.storage.urls import is_remote, normalise


def check_output(source: Source, url: str) -> None:
    """Refuse an output at `url` inside the folders that the source reads; ConfigError."""
    if not isinstance(source, FolderSource | WebDatasetSource | ParquetSource):
        return
    for key in ("path", "test_path"):
        path = getattr(source, key)
        root = _root(path) if path else None
        if root is None:
            continue
        output = _resolved(url)
        if output == root or output.startswith(root.rstrip("/") + "/"):
            what = f"{url} lies inside source.{key} ({path}), where it would be read as real images"
            raise ConfigError("--output", what, "give an --output outside of it")


def _root(path: str) -> str | None:
    """The folder below which everything is read; None where only files of one level are."""
    parts = path.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in WILD)), len(parts))
    if first < len(parts) and "**" not in parts and not os.path.lexists(path):
        return None
    return _resolved(path if os.path.lexists(path) else "/".join(parts[:first]) or "/")


def _resolved(path: str) -> str:
    place = normalise(path)
    return place if is_remote(place) else os.path.realpath(place)
