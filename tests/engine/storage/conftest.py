"""Stores of every kind that can run here: a folder, memory, and S3 served by moto."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from engine.storage.store import Store, open_store


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_url"))
    return open_store(tmp_path / "out" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/out")
