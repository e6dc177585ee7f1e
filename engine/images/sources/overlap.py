"""Outputs apart from real images: none lies where a source would read its shards, or its folders, as real images
later."""

from __future__ import annotations

import os

from engine.errors import ConfigError
from engine.spec import RunSpec
from engine.spec.recipe import FolderSource, ParquetSource, WebDatasetSource
from engine.storage.paths import WILD
from engine.storage.urls import is_remote, normalise


def check_output(spec: RunSpec, url: str) -> None:
    """Refuse an output at `url` inside the folders that the run's sources read; ConfigError."""
    output = _resolved(url)
    sets = spec.evaluate.sets if spec.evaluate else {}
    sources = {"source": spec.source, **{f"evaluate.sets.{name}.source": each.source for name, each in sets.items()}}
    for section, source in sources.items():
        if not isinstance(source, FolderSource | WebDatasetSource | ParquetSource):
            continue
        for key in ("path", "test_path"):
            path = getattr(source, key)
            root = _root(path) if path else None
            if root is not None and (output == root or output.startswith(root.rstrip("/") + "/")):
                what = f"{url} lies inside {section}.{key} ({path}), where it would be read as real images"
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
