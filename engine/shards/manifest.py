"""The manifest of a finished data set: one row a shard, the quarantine table, and a seal over both, written last."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from engine import output
from engine.errors import DataError
from engine.shards import indexes, records
from engine.shards.names import DATA, PlanFacts, record_path, tar_path
from engine.shards.records import Record
from engine.spec import canonical_json, digest
from engine.storage.parallel import mapped
from engine.storage.store import Store

Encoded = bytes  # the class below has a field named `bytes`
FORMAT = 1
MANIFEST = output.MANIFEST
QUARANTINE = output.QUARANTINE
SEAL = output.MANIFEST_SEAL
_FIX = "restore it, or remove it and resume the run"
SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("path", pa.string()),
        ("index", pa.int64()),
        ("first", pa.int64()),
        ("planned", pa.int64()),
        ("count", pa.int64()),
        ("quarantined", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("plan_digest", pa.string()),
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("key", pa.string()),
        ("label", pa.int32()),
        ("reason", pa.string()),
        ("attempts", pa.int32()),
    ]
)
_SEALED = {MANIFEST, QUARANTINE, *indexes.build("", [])}
_TABLES = ((MANIFEST, SCHEMA), (QUARANTINE, QUARANTINE_SCHEMA))


class ManifestRow(TypedDict):
    """A row of `SCHEMA`: a shard."""

    shard: str
    path: str
    index: int
    first: int
    planned: int
    count: int
    quarantined: int
    bytes: int
    sha256: str
    plan_digest: str


class QuarantineRow(TypedDict):
    """A row of `QUARANTINE_SCHEMA`: a sample that was given up."""

    index: int
    key: str
    label: int
    reason: str
    attempts: int


class FileSeal(TypedDict):
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Seal:
    """What `manifest.json` says: the plan, the totals, and size and SHA-256 of the derived files by path."""

    facts: PlanFacts
    shards: int
    samples: int
    quarantined: int
    bytes: int
    files: dict[str, FileSeal]

    def to_json(self) -> Encoded:
        """Canonical JSON that carries its own SHA-256 in `seal`."""
        totals = {"shards": self.shards, "samples": self.samples, "quarantined": self.quarantined, "bytes": self.bytes}
        data = {"format": FORMAT, **self.facts.to_json(), **totals, "files": self.files}
        return (canonical_json({**data, "seal": digest(data)}) + "\n").encode()


@dataclass(frozen=True)
class Manifest:
    """A finished data set: its seal, one row a shard (`SCHEMA`), one row a quarantined sample (`QUARANTINE_SCHEMA`)."""

    seal: Seal
    table: pa.Table
    quarantine: pa.Table


def finalise(store: Store, facts: PlanFacts, plan_digest: Callable[[int], str] | None = None) -> Manifest:
    """Seal a run whose shards are all published: indexes, quarantine table, manifest, and the seal last.

    `plan_digest(k)`: identity of the planned samples of shard k, asked where a record has to be rebuilt from its tar.
    Equal shards give equal files, and files that are there already are left alone. Raises DataError where a shard is
    missing, or where a record is and there is no `plan_digest`.
    """
    sizes = {entry.name: entry.size for entry in store.list(f"{DATA}/")}
    missing = [index for index in range(facts.shards) if tar_path(facts.shard(index)) not in sizes]
    if missing:
        where = f"{store.url}/{tar_path(facts.shard(missing[0]))}"
        raise DataError(where, f"is missing ({len(missing)} of {facts.shards} shards are)", "resume the run")

    def record(index: int) -> Record:
        size = sizes[tar_path(facts.shard(index))]
        found = _stored(store, facts, index, size)
        if found is None and plan_digest is not None:
            found = records.rebuild(store, facts, index, plan_digest(index))
            records.publish(store, found)
        if found is None:
            where = f"{store.url}/{record_path(facts.shard(index))}"
            raise DataError(where, "is missing, or is not the record of its tar", "resume the run")
        return found

    rows = list(mapped(record, range(facts.shards)))
    table, quarantine = _tables(facts, rows)
    listed = [indexes.ShardSize(f"{row.shard}.tar", row.count, row.bytes) for row in rows]
    files = indexes.build(facts.name, listed) | {QUARANTINE: _parquet(quarantine), MANIFEST: _parquet(table)}
    seal = Seal(
        facts=facts,
        shards=len(rows),
        samples=sum(row.count for row in rows),
        quarantined=quarantine.num_rows,
        bytes=sum(row.bytes for row in rows),
        files={name: {"bytes": len(data), "sha256": _sha256(data)} for name, data in files.items()},
    )
    _write(store, files, seal.to_json())
    return Manifest(seal, table, quarantine)


def load(store: Store) -> Manifest:
    """Read the manifest of a finished data set; raises DataError where it is absent, changed or not of one piece."""
    seal = load_seal(store)
    table, quarantine = (_table(store, seal, name, schema) for name, schema in _TABLES)
    faults = structure_faults(seal, table, quarantine)
    if faults:
        raise DataError(f"{store.url}/{MANIFEST}", faults[0], _FIX)
    return Manifest(seal, table, quarantine)


def load_seal(store: Store) -> Seal:
    """Read `manifest.json` alone; raises DataError where it is absent or any byte of it was changed."""
    where = f"{store.url}/{SEAL}"
    if not store.exists(SEAL):
        raise DataError(where, "no such file: the data set is not finished", "resume the run")
    text = store.read(SEAL)
    try:
        data = json.loads(text)
        version = data["format"]
        if type(version) is int and version > FORMAT:
            raise DataError(where, f"is of format {version}, newer than this engine ({FORMAT})", "use a newer engine")
        totals = {key: data[key] for key in ("shards", "samples", "quarantined", "bytes")}
        seal = Seal(facts=PlanFacts.from_json(data, where), files=data["files"], **totals)
        listed = all(type(file["bytes"]) is int and isinstance(file["sha256"], str) for file in seal.files.values())
        if seal.to_json() != text or set(seal.files) != _SEALED or not listed:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(where, "was changed or cut", _FIX) from None
    return seal


def structure_faults(seal: Seal, table: pa.Table, quarantine: pa.Table) -> list[str]:
    """What is wrong with a manifest in itself: rows that are not the planned shards, or totals that do not add up."""
    facts, rows = seal.facts, table.to_pylist()
    if len(rows) != facts.shards:
        return [f"lists {len(rows)} shards, the plan has {facts.shards}"]
    faults = []
    for index, row in enumerate(rows):
        first, planned = facts.span(index)
        named = (row["shard"], row["path"], row["index"]) == (facts.shard(index), tar_path(facts.shard(index)), index)
        if not named or (row["first"], row["planned"]) != (first, planned):
            faults.append(f"row {index} is not shard {facts.shard(index)} of the plan")
        elif row["count"] + row["quarantined"] != planned:
            faults.append(f"row {index}: {row['count']} samples and {row['quarantined']} quarantined are not {planned}")
    added = [sum(row[column] for row in rows) for column in ("count", "quarantined", "bytes")]
    if not faults and [*added, quarantine.num_rows] != [seal.samples, seal.quarantined, seal.bytes, seal.quarantined]:
        faults.append("its totals are not those of its rows")
    return faults


def parse(data: bytes, schema: pa.Schema, where: str) -> pa.Table:
    """Read one of the two tables; raises DataError where it is not Parquet of that schema."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError):
        raise DataError(where, "is not a readable Parquet file", _FIX) from None
    if not table.schema.equals(schema):
        raise DataError(where, "does not have the columns of this format", _FIX)
    return table


def _table(store: Store, seal: Seal, name: str, schema: pa.Schema) -> pa.Table:
    where = f"{store.url}/{name}"
    try:
        data = store.read(name)
    except FileNotFoundError:
        raise DataError(where, "is missing", _FIX) from None
    sealed = seal.files.get(name)
    if sealed is None or _sha256(data) != sealed["sha256"]:
        raise DataError(where, f"was changed: it is not the file that {SEAL} sealed", _FIX)
    return parse(data, schema, where)


def _stored(store: Store, facts: PlanFacts, index: int, size: int) -> Record | None:
    """The record of a shard if it is whole and describes this shard and a tar of this size."""
    try:
        record = records.load(store, facts.shard(index))
    except DataError:
        return None
    if record is None or (record.shard, record.index, record.bytes) != (facts.shard(index), index, size):
        return None
    return record if (record.first, record.planned) == facts.span(index) else None


def _tables(facts: PlanFacts, rows: Sequence[Record]) -> tuple[pa.Table, pa.Table]:
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in rows] for name in SCHEMA.names if name not in ("path", "quarantined")
    }
    columns["path"] = [tar_path(row.shard) for row in rows]
    columns["quarantined"] = [len(row.quarantined) for row in rows]
    entries = [{**entry.to_json(), "key": facts.key(entry.index)} for row in rows for entry in row.quarantined]
    return pa.table(columns, schema=SCHEMA), pa.Table.from_pylist(entries, schema=QUARANTINE_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _write(store: Store, files: dict[str, bytes], seal: bytes) -> None:
    """Write what differs; the seal goes away first and comes back last, so that it never seals other files."""
    stale = [name for name, data in files.items() if _current(store, name) != data]
    current = _current(store, SEAL)
    if current == seal and not stale:
        return
    if current is not None:
        store.remove(SEAL)
    for name in stale:
        store.replace(name, files[name])
    store.replace(SEAL, seal)


def _current(store: Store, name: str) -> bytes | None:
    try:
        return store.read(name)
    except FileNotFoundError:
        return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
