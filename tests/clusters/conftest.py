"""What the cluster tests share: one small run and its reference."""

from __future__ import annotations

import os

import pytest

from tests.support.runs import SmallRun, small_run


@pytest.fixture(scope="session")
def real_clusters() -> None:
    """Skips where the tier of real clusters was not asked for: it takes a quarter of an hour and Ray's own extras."""
    if not os.environ.get("MIMEO_CLUSTER_TESTS"):
        pytest.skip("make test-clusters runs it")


@pytest.fixture(scope="session")
def small(real_clusters: None, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("small"))
