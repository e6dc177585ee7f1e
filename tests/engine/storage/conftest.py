"""Stores of every kind that can run here: a folder, memory, and S3 served by moto."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.storage.store import Store, open_store
from tests.support import s3


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The endpoint of an S3 server that lives as long as the session."""
    with s3.serve() as endpoint:
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str) -> Iterator[str]:
    """A folder of a new bucket, with the environment that S3 clients need."""
    with s3.environment(s3_endpoint):
        yield f"s3://{s3.make_bucket(s3_endpoint)}/runs/toy"


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "s3":
        return open_store(request.getfixturevalue("s3_url"))
    return open_store(tmp_path / "out" if request.param == "folder" else f"memory://{uuid.uuid4().hex}/out")
