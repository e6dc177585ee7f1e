"""The poison guard's count: deaths of this session, of this shard, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.generation.attempts import Attempts, clear
from engine.storage.store import open_store

DEAD = []


def die(attempts: Attempts, name: str) -> None:
    """Leave a marker as a killed process does: the block is entered and never left."""
    DEAD.append(attempts.trying(name))
    DEAD[-1].__enter__()


def test_deaths_are_counted_by_shard_and_session(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ours, theirs = Attempts(store, "aaaa"), Attempts(store, "bbbb")
    for attempts, name in ((ours, "s-000001"), (ours, "s-000001"), (ours, "s-00001"), (theirs, "s-000001")):
        die(attempts, name)
    with ours.trying("s-000001") as number:
        assert number == 3
    with theirs.trying("s-000001") as number:
        assert number == 2
    with ours.trying("s-000002") as number:
        assert number == 1


def test_an_ordinary_end_and_an_exception_are_no_deaths(tmp_path: Path) -> None:
    attempts = Attempts(open_store(str(tmp_path)), "aaaa")
    with attempts.trying("s"):
        pass
    with pytest.raises(ValueError), attempts.trying("s"):
        raise ValueError
    with attempts.trying("s") as number:
        assert number == 1


def test_two_at_once_both_begin(tmp_path: Path) -> None:
    attempts = Attempts(open_store(str(tmp_path)), "aaaa")
    with attempts.trying("s") as first, attempts.trying("s") as second:
        assert (first, second) == (1, 2)


def test_clear_forgets_every_session(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for session in ("aaaa", "bbbb"):
        die(Attempts(store, session), "s")
    clear(store)
    assert not [entry for entry in store.list() if entry.name.startswith("attempts")]
