"""Names are dense, sorted as their numbers, and spans cover every sample once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.shards.names import PLAN, PlanFacts, key, record_path, shard_name, shards_of, tar_path
from engine.storage.store import open_store


def test_names() -> None:
    assert shard_name("toy", 123) == "toy-000123"
    assert shard_name("toy", 12_345_678) == "toy-12345678"
    assert key("toy", 123) == "toy-000000000123"
    assert tar_path("toy-000123") == "data/toy-000123.tar"
    assert record_path("toy-000123") == "data/toy-000123.json"


@settings(deadline=None)
@given(st.integers(1, 2000), st.integers(1, 300))
def test_spans_cover_every_sample_once(count: int, size: int) -> None:
    facts = PlanFacts("toy", count, size, "h")
    covered = [i for k in range(facts.shards) for first, n in [facts.span(k)] for i in range(first, first + n)]
    assert covered == list(range(count))
    assert all(facts.span(k)[1] >= 1 for k in range(facts.shards))
    assert facts.shards == shards_of(count, size)
    assert [facts.key(i) for i in covered] == sorted(facts.key(i) for i in covered)


def test_facts_of_a_huge_plan_cost_nothing() -> None:
    facts = PlanFacts("toy", 10**12, 10_000, "h")
    assert facts.shards == 10**8
    assert facts.span(10**8 - 1) == (10**12 - 10_000, 10_000)


def test_facts_are_read_from_the_plan() -> None:
    store = open_store("memory://names/out")
    with pytest.raises(DataError, match=r"plan\.json: no such file"):
        PlanFacts.load(store)
    facts = PlanFacts("toy", 23, 5, "h")
    store.replace(PLAN, json.dumps({**facts.to_json(), "more": 1}).encode())
    assert PlanFacts.load(store) == facts
    changes = [{"count": 0}, {"count": True}, {"count": "23"}, {"shard_size": -1}, {"name": ""}, {"spec_hash": None}]
    for text in [b"", b"[]", b"{}", b"[" * 10**5, *(json.dumps({**facts.to_json(), **c}).encode() for c in changes)]:
        store.replace(PLAN, text)
        with pytest.raises(DataError, match=r"plan\.json"):
            PlanFacts.load(store)
