"""What the cluster tests share: one small run and its reference."""

from __future__ import annotations

import pytest

from tests.support.runs import SmallRun, small_run


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("small"))
