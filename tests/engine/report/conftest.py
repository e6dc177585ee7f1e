"""One judged output of a hostile data set for all tests of the report."""

from __future__ import annotations

import pytest

from tests.support.hostile import JudgedRun, judged_output


@pytest.fixture(scope="session")
def judged_run(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> JudgedRun:
    """The hostile output, made once."""
    return judged_output(tmp_path_factory.mktemp("judged"))
