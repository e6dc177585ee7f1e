"""Fixtures that the whole suite shares: one Ray, one tiny checkpoint a session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import s3

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
LONGEST = (
    "tests/chaos",
    "tests/pipelines",
    "tests/engine/generation/test_job.py",
    "tests/engine/training/pretrain/test_pretrain_run.py",
    "tests/engine/training/matching",
    "tests/engine/study",
    "tests/engine/evaluation",
    "tests/engine/training",
    "tests/engine/conditions",
    "tests/engine/generation",
)


def pytest_configure(config: pytest.Config) -> None:
    """A cache of the session's own, for its Ray and the commands that it starts too; workers of xdist share it."""
    if "MIMEO_CACHE" not in os.environ:
        os.environ["MIMEO_CACHE"] = folder = tempfile.mkdtemp(prefix="mimeo-cache-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left alone with one of them at the end."""

    def place(item: pytest.Item) -> int:
        return next((k for k, prefix in enumerate(LONGEST) if item.nodeid.startswith(prefix)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the project; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray for the whole session."""
    from engine.cluster.session import session
    from engine.spec.recipe import ResourcesSpec

    with session(ResourcesSpec(device="cpu"), num_cpus=4):
        yield


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


settings.register_profile("mimeo", deadline=None)  # a loaded machine must not fail a property
settings.load_profile("mimeo")
