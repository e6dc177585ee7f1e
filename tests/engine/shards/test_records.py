"""Records: whole or refused, rebuilt from the tar alone, and never left describing another tar."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.shards import records
from engine.shards.names import PlanFacts, record_path, tar_path
from engine.shards.records import Record
from engine.shards.writer import Quarantined, ShardBuilder
from engine.spec import canonical_json, digest
from engine.storage.store import Store, open_store
from tests.support.sealed import digest_of, files, publish_shard

FACTS = PlanFacts("toy", 23, 5, "h")
ENTRY = Quarantined(3, 1, "low_clip_score", 3)
RECORD = Record("toy-000000", 0, 0, 5, 4, 10240, "ab" * 32, "cd" * 32, (ENTRY,), 2, "host", 7, 1.5, 16, "cpu", 1.7e9)


@pytest.fixture
def store(tmp_path: Any) -> Store:
    """An empty output."""
    return open_store(tmp_path / "out")


def test_json_and_back() -> None:
    assert Record.from_json(RECORD.to_json(), "r") == RECORD
    assert json.loads(RECORD.to_json())["quarantined"] == [
        {"index": 3, "label": 1, "reason": "low_clip_score", "attempts": 3}
    ]


def test_identity_leaves_out_how_it_was_made() -> None:
    other = replace(RECORD, attempt=9, host="b", pid=1, seconds=9.0, batch_size=1, device="cuda", finished=0.0)
    assert other.identity() == RECORD.identity()
    assert other.to_json() != RECORD.to_json()
    assert replace(RECORD, sha256="00" * 32).identity() != RECORD.identity()


def test_records_of_before_costs_were_noted_are_read_and_written_as_they_are() -> None:
    old = (
        b'{"attempt":2,"batch_size":16,"bytes":10240,"check":"CHECK","count":4,"device":"cpu","finished":1700000000.0,'
        b'"first":0,"format":1,"host":"host","index":0,"pid":7,"plan_digest":"PLAN","planned":5,'
        b'"quarantined":[{"attempts":3,"index":3,"label":1,"reason":"low_clip_score"}],"seconds":1.5,"sha256":"SHA",'
        b'"shard":"toy-000000"}\n'
    )
    old = old.replace(b"PLAN", b"cd" * 32).replace(b"SHA", b"ab" * 32)
    data = json.loads(old)
    del data["check"]
    old = old.replace(b"CHECK", digest(data).encode())
    assert Record.from_json(old, "r") == RECORD
    assert RECORD.to_json() == old


def test_the_cost_of_a_shard_is_in_its_record_and_not_in_its_identity() -> None:
    told = replace(RECORD, device_name="NVIDIA H100", device_seconds=0.75, joules=300.25, drawn=9)
    assert Record.from_json(told.to_json(), "r") == told
    assert told.identity() == RECORD.identity()


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, len(RECORD.to_json()) - 1), st.integers(1, 255), st.sampled_from(["flip", "cut", "insert", "drop"])
)
def test_any_changed_byte_is_refused(position: int, change: int, how: str) -> None:
    text = RECORD.to_json()
    damaged = {
        "flip": text[:position] + bytes([text[position] ^ change]) + text[position + 1 :],
        "cut": text[:position],
        "insert": text[:position] + b" " + text[position:],
        "drop": text[:position] + text[position + 1 :],
    }[how]
    with pytest.raises(DataError, match=r"^r: "):
        Record.from_json(damaged, "r")


@pytest.mark.parametrize("text", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"check":1,"format":1}', b"\xff\xfe"])
def test_what_is_no_record_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="is not a shard record"):
        Record.from_json(text, "r")


@pytest.mark.parametrize(
    "change",
    [
        *({"index": "0"}, {"index": True}, {"count": 1.5}, {"shard": None}, {"seconds": "1"}, {"quarantined": [{}]}),
        *({"device_seconds": "1"}, {"joules": True}, {"drawn": 1.5}, {"device_name": 3}),
    ],
)
def test_wrong_types_are_refused_even_with_a_right_checksum(change: dict[str, Any]) -> None:
    data = json.loads(RECORD.to_json())
    del data["check"]
    data.update(change)
    with pytest.raises(DataError):
        Record.from_json((canonical_json({**data, "check": digest(data)}) + "\n").encode(), "r")


def test_a_newer_format_is_said_so() -> None:
    data = json.loads(RECORD.to_json())
    with pytest.raises(DataError, match="is of format 2"):
        Record.from_json(json.dumps({**data, "format": 2}).encode(), "r")


@pytest.mark.parametrize("given_up", [(), (1, 4), (0, 1, 2, 3, 4)])
def test_rebuilt_from_the_tar_alone(store: Store, given_up: tuple[int, ...]) -> None:
    publish_shard(store, FACTS, 0, given_up)
    made = records.load(store, "toy-000000")
    assert made is not None
    assert (made.count, [entry.index for entry in made.quarantined]) == (5 - len(given_up), list(given_up))
    assert records.rebuild(store, FACTS, 0, digest_of(0)).identity() == made.identity()


def test_the_last_shard_may_be_short(store: Store) -> None:
    publish_shard(store, FACTS, 4)
    record = records.rebuild(store, FACTS, 4, digest_of(4))
    assert (record.first, record.planned, record.count) == (20, 3, 3)


@pytest.mark.parametrize("shard", [1, 3])
def test_a_tar_of_other_samples_is_not_the_shard(store: Store, shard: int) -> None:
    publish_shard(store, FACTS, shard)
    store.create(tar_path("toy-000000"), store.read(tar_path(FACTS.shard(shard))))
    with pytest.raises(DataError, match=r"toy-000000\.tar"):
        records.rebuild(store, FACTS, 0, "d")


def test_a_tar_cut_at_a_member_is_not_rebuilt(store: Store) -> None:
    publish_shard(store, FACTS, 0)
    data = store.read(tar_path("toy-000000"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        cut = tar.getmembers()[9].offset
    for content in (data[:cut], data[:cut] + bytes(10240), b""):
        store.replace(tar_path("toy-000000"), content)
        with pytest.raises(DataError, match=r"toy-000000\.tar"):
            records.rebuild(store, FACTS, 0, "d")
    store.remove(tar_path("toy-000000"))
    with pytest.raises(DataError, match="is missing"):
        records.rebuild(store, FACTS, 0, "d")


def test_making_a_record_of_an_incomplete_shard_is_refused() -> None:
    builder = ShardBuilder()
    for index in range(4):
        builder.add(FACTS.key(index), files(index))
    with pytest.raises(DataError, match="4 samples and 0 quarantined of 5 planned"):
        records.make(FACTS, 0, builder.finish(), (), "d")
    with pytest.raises(DataError, match="4 samples and 1 quarantined"):
        records.make(FACTS, 0, builder.finish(), (Quarantined(99, 0, "elsewhere", 1),), "d")
    assert records.make(FACTS, 0, builder.finish(), (Quarantined(4, 0, "bad", 1),), "d").count == 4


def test_publishing_keeps_the_first_of_equal_records_and_replaces_stale_or_torn_ones(store: Store) -> None:
    publish_shard(store, FACTS, 0)
    path, first = record_path("toy-000000"), records.load(store, "toy-000000")
    assert first is not None
    records.publish(store, replace(first, host="later", attempt=2))
    assert records.load(store, "toy-000000") == first
    for stale in (replace(first, sha256="00" * 32).to_json(), b"", first.to_json()[:-20]):
        store.replace(path, stale)
        records.publish(store, first)
        assert records.load(store, "toy-000000") == first


def test_pending_is_the_plan_less_the_tars(store: Store) -> None:
    assert records.pending(store, FACTS) == [0, 1, 2, 3, 4]
    for shard in (3, 0):
        publish_shard(store, FACTS, shard)
    store.remove(record_path("toy-000003"))  # the tar alone is the commit
    assert records.pending(store, FACTS) == [1, 2, 4]
    store.remove(tar_path("toy-000000"))
    assert records.pending(store, FACTS) == [0, 1, 2, 4]
    assert records.load(store, "toy-000000") is None  # it described a tar that is gone
