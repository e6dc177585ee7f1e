"""The manifest: equal for equal shards, last and sealed, and never made over a missing or foreign shard."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.errors import DataError
from engine.shards import manifest, records
from engine.shards.manifest import MANIFEST, QUARANTINE, SEAL, Seal
from engine.shards.names import PlanFacts, record_path, tar_path
from engine.shards.verification import verify
from engine.storage.abstract_store import Content
from engine.storage.local import LocalStore
from engine.storage.store import Store, open_store
from tests.support.sealed import digest_of, make_output, publish_shard

GIVEN_UP = (3, 7, 10, 11, 12, 13, 14)
DERIVED = (MANIFEST, QUARANTINE, SEAL, "data/_info.json", "data/sizes.json", "data/index.json")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty output."""
    return open_store(tmp_path / "out")


def derived(store: Store) -> dict[str, bytes]:
    return {name: store.read(name) for name in DERIVED}


def test_one_row_a_shard_read_with_plain_pyarrow(store: Store) -> None:
    facts = make_output(store, given_up=GIVEN_UP)
    rows = pq.read_table(io.BytesIO(store.read(MANIFEST))).to_pylist()
    assert [row["shard"] for row in rows] == [f"toy-{k:06d}" for k in range(5)]
    assert [(row["first"], row["planned"]) for row in rows] == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    assert [(row["count"], row["quarantined"]) for row in rows] == [(4, 1), (4, 1), (0, 5), (5, 0), (3, 0)]
    assert [row["plan_digest"] for row in rows] == [digest_of(k) for k in range(5)]
    for row in rows:
        record = records.load(store, row["shard"])
        assert record is not None
        assert (row["bytes"], row["sha256"]) == (record.bytes, record.sha256)
        assert row["path"] == f"data/{row['shard']}.tar"
    given_up = pq.read_table(io.BytesIO(store.read(QUARANTINE))).to_pylist()
    assert [row["index"] for row in given_up] == list(GIVEN_UP)
    assert given_up[0] == {"index": 3, "key": "toy-000000000003", "label": 3, "reason": "constant_image", "attempts": 3}
    loaded = manifest.load(store)
    assert loaded.seal.facts == facts
    assert (loaded.seal.shards, loaded.seal.samples, loaded.seal.quarantined) == (5, 16, 7)
    assert loaded.seal.bytes == sum(row["bytes"] for row in rows)


def test_equal_shards_give_equal_bytes_whoever_made_them_when(tmp_path: Path) -> None:
    first, second = open_store(tmp_path / "1"), open_store(tmp_path / "2")
    make_output(first, given_up=GIVEN_UP)
    facts = PlanFacts("toy", 23, 5, "5" * 64)
    for shard in (4, 1, 3, 0, 2):
        gone = [index for index in GIVEN_UP if index // 5 == shard]
        publish_shard(second, facts, shard, gone, attempt=shard, host="elsewhere", pid=1, seconds=9.0, finished=1.0)
    second.remove(record_path("toy-000001"))
    manifest.finalise(second, facts, digest_of)
    assert derived(first) == derived(second)


def test_finalising_again_writes_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    facts = make_output(store)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    manifest.finalise(store, facts)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_missing_shard_is_named(store: Store) -> None:
    facts = make_output(store)
    store.remove(SEAL)
    store.remove(tar_path("toy-000001"))
    store.remove(tar_path("toy-000003"))
    with pytest.raises(DataError, match=r"toy-000001\.tar: is missing \(2 of 5 shards are\)"):
        manifest.finalise(store, facts)
    assert not store.exists(SEAL)


def test_missing_stale_torn_and_exchanged_records_are_rebuilt(store: Store) -> None:
    facts = make_output(store, given_up=GIVEN_UP)
    expected = derived(store)
    store.remove(record_path("toy-000000"))
    store.replace(record_path("toy-000001"), store.read(record_path("toy-000001"))[:-9])
    swapped = store.read(record_path("toy-000003"))
    store.replace(record_path("toy-000003"), store.read(record_path("toy-000004")))
    store.replace(record_path("toy-000004"), swapped)
    with pytest.raises(DataError, match=r"toy-00000[01]\.json: is missing, or is not the record of its tar"):
        manifest.finalise(store, facts)
    manifest.finalise(store, facts, digest_of)
    assert derived(store) == expected
    assert verify(store).faults == []


def test_a_foreign_tar_is_not_sealed(store: Store) -> None:
    facts = make_output(store)
    store.replace(tar_path("toy-000001"), store.read(tar_path("toy-000002")))
    store.remove(record_path("toy-000001"))
    with pytest.raises(DataError, match=r"toy-000001\.tar"):
        manifest.finalise(store, facts, digest_of)


class Dying(LocalStore):
    """A folder whose writer dies at its n-th change, before or after making it."""

    def __init__(self, url: str, step: int, after: bool) -> None:
        super().__init__(url)
        self.step, self.after = step, after

    def _die(self, call: Any, *arguments: Any) -> Any:
        self.step -= 1
        if self.step == 0 and not self.after:
            raise KeyboardInterrupt
        result = call(*arguments)
        if self.step == 0:
            raise KeyboardInterrupt
        return result

    def create(self, name: str, data: Content) -> bool:
        return bool(self._die(super().create, name, data))

    def replace(self, name: str, data: bytes) -> None:
        self._die(super().replace, name, data)

    def remove(self, name: str) -> None:
        self._die(super().remove, name)


@pytest.mark.parametrize("after", [False, True])
def test_a_death_at_any_step_leaves_no_seal_over_other_files(tmp_path: Path, after: bool) -> None:
    """From an older manifest whose shard was made again."""
    for step in range(1, 20):
        store = open_store(tmp_path / f"{step}")
        facts = make_output(store, given_up=(3,))
        for path in (tar_path("toy-000000"), record_path("toy-000000")):
            store.remove(path)
        publish_shard(store, facts, 0)
        dying = Dying(store.url, step, after)
        try:
            manifest.finalise(dying, facts, digest_of)
        except KeyboardInterrupt:
            if store.exists(SEAL):
                sealed = manifest.load(store).seal.files
                assert {name: entry["sha256"] for name, entry in sealed.items()} == {
                    name: hashlib.sha256(store.read(name)).hexdigest() for name in DERIVED if name != SEAL
                }
            manifest.finalise(store, facts, digest_of)
            assert verify(store).faults == []
            continue
        break
    assert step >= 7  # the seal goes, five files and the new seal come
    assert verify(store).faults == []


@pytest.mark.parametrize("name", [MANIFEST, QUARANTINE, SEAL])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped", "empty"])
def test_a_damaged_manifest_is_not_loaded(store: Store, name: str, damage: str) -> None:
    make_output(store, given_up=GIVEN_UP)
    data = store.read(name)
    changed = {"cut": data[:-7], "flipped": data[:50] + bytes([data[50] ^ 1]) + data[51:], "empty": b""}
    store.remove(name)
    if damage in changed:
        store.create(name, changed[damage])
    with pytest.raises(DataError, match=name) as caught:
        manifest.load(store)
    assert caught.value.exit_code == 3


def reseal(store: Store, table: pa.Table, facts: PlanFacts | None = None) -> None:
    """Write a manifest that is consistent with its seal, as a faulty or malicious writer would."""
    old = manifest.load_seal(store)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    sealed = manifest._sha256(sink.getvalue())
    entry = {MANIFEST: {"bytes": len(sink.getvalue()), "sha256": sealed}}
    totals = [sum(table.column(name).to_pylist()) for name in ("count", "quarantined", "bytes")]
    store.replace(MANIFEST, sink.getvalue())
    store.replace(SEAL, Seal(facts or old.facts, table.num_rows, *totals, {**old.files, **entry}).to_json())


@pytest.mark.parametrize("drop", [0, 2, 4])
def test_a_well_sealed_manifest_that_lacks_a_planned_shard_is_refused(store: Store, drop: int) -> None:
    make_output(store)
    table = manifest.load(store).table
    reseal(store, pa.concat_tables([table.slice(0, drop), table.slice(drop + 1)]))
    with pytest.raises(DataError, match="lists 4 shards, the plan has 5"):
        manifest.load(store)
    assert verify(store).faults


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("path", "../../etc/passwd"),
        ("path", "data/toy-000002.tar"),
        ("index", 2),
        ("first", 6),
        ("planned", 6),
        ("count", 4),
    ],
)
def test_a_well_sealed_manifest_of_other_shards_is_refused(store: Store, column: str, value: Any) -> None:
    make_output(store)
    rows = manifest.load(store).table.to_pylist()
    rows[1][column] = value
    reseal(store, pa.Table.from_pylist(rows, schema=manifest.SCHEMA))
    with pytest.raises(DataError, match="row 1"):
        manifest.load(store)
    assert verify(store).faults


def test_a_shrunken_plan_is_found_by_the_plan_file(store: Store) -> None:
    make_output(store)
    table = manifest.load(store).table
    reseal(store, table.slice(0, 4), PlanFacts("toy", 20, 5, "5" * 64))
    assert manifest.load(store).seal.samples == 20
    assert any(fault.startswith("plan.json") for fault in verify(store).faults)


def test_a_newer_format_is_said_so(store: Store) -> None:
    make_output(store)
    store.replace(SEAL, json.dumps({**json.loads(store.read(SEAL)), "format": 2}).encode())
    with pytest.raises(DataError, match="is of format 2, newer than this engine"):
        manifest.load(store)
