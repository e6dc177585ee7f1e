"""Status counts from records alone, while a run goes on and after it died."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.shards.names import PLAN, PlanFacts, record_path
from engine.shards.shard_status import status
from engine.spec import validate
from engine.storage.claim import claim
from engine.storage.lock import hold
from engine.storage.store import Store, open_store
from tests.support.sealed import make_output, publish_shard

FACTS = PlanFacts("toy", 23, 5, "h")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An output with a plan and no shard yet."""
    store = open_store(tmp_path / "out")
    store.create(PLAN, json.dumps(FACTS.to_json()).encode())
    return store


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run of mimeo"):
        status(open_store(tmp_path))


def test_a_recipe_without_a_plan(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    claim(store, validate({"name": "toy", "source": {"kind": "digits"}, "generate": {"count": 50, "shard_size": 20}}))
    found = status(store)
    assert (found.name, found.planned, found.done, found.shards, found.shards_done) == ("toy", 50, 0, 3, 0)
    assert (found.rate, found.last_record_age, found.running, found.finished) == (None, None, None, False)
    assert ("last shard", "none yet") in found.lines()


def test_a_run_on_its_way(store: Store) -> None:
    now = time.time()
    publish_shard(store, FACTS, 0, (1, 2), seconds=10.0, finished=now - 30)
    publish_shard(store, FACTS, 1, (), seconds=10.0, finished=now - 20)
    found = status(store)
    assert (found.planned, found.done, found.quarantined) == (23, 8, 2)
    assert (found.shards, found.shards_done, found.finished) == (5, 2, False)
    assert found.rate == pytest.approx(8 / 20)  # from 10 s before the first record to the last
    assert found.last_record_age == pytest.approx(20, abs=5)
    assert found.running is None
    assert found.seconds_left is None
    with hold(store, "mimeo generate"):
        found = status(store)
        assert found.running is not None
        assert found.running.pid == os.getpid()
        assert found.seconds_left == pytest.approx(13 / (8 / 20))
        lines = dict(found.lines())
    assert lines["samples"] == "8 of 23, 2 quarantined"
    assert lines["shards"] == "2 of 5"
    assert lines["rate"] == "0.4 samples/s, 0:00:32 left"
    assert lines["running"].startswith("mimeo generate on ")


def test_old_records_do_not_slow_the_rate(store: Store) -> None:
    now = time.time()
    publish_shard(store, FACTS, 0, seconds=1.0, finished=now - 7 * 24 * 3600)
    publish_shard(store, FACTS, 1, seconds=10.0, finished=now)
    assert status(store).rate == pytest.approx(5 / 10)


def test_a_tar_whose_record_is_missing_or_torn_counts_as_planned(store: Store) -> None:
    for shard in (0, 4):
        publish_shard(store, FACTS, shard)
    store.remove(record_path("toy-000004"))
    store.replace(record_path("toy-000000"), b"{")
    found = status(store)
    assert (found.done, found.quarantined, found.shards_done, found.rate) == (8, 0, 2, None)


def test_a_record_without_its_tar_counts_for_nothing(store: Store) -> None:
    publish_shard(store, FACTS, 0)
    store.remove("data/toy-000000.tar")
    assert (status(store).done, status(store).shards_done) == (0, 0)


def test_a_finished_output(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    make_output(store, given_up=(3, 4))
    found = status(store)
    assert found.finished
    assert (found.done, found.quarantined, found.shards_done) == (21, 2, 5)
    assert dict(found.lines())["manifest"] == "sealed"
