"""A killed ratio search goes on where it was, and ends as an undisturbed one."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.search import faults_of
from tests.support.tiers import slow


@slow
def test_a_killed_search_runs_no_finished_trial_again(tmp_path: Path) -> None:
    assert faults_of(tmp_path) == []
