"""The record of a shard: what is in its tar, and how it came to be; a cache that can be rebuilt from the tar."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import DataError
from engine.shards.groups import read_tar
from engine.shards.names import DATA, PlanFacts, record_path, tar_path
from engine.shards.writer import Quarantined, ShardBytes
from engine.spec import canonical_json
from engine.storage.parallel import mapped
from engine.storage.store import Store

FORMAT = 1
_COST = ("device_name", "device_seconds", "joules", "drawn")  # came after the first records, which do not have them
_HOW = ("attempt", "host", "pid", "seconds", "batch_size", "device", "finished", *_COST)
Encoded = bytes  # the class below has a field named `bytes`
_FIX = "remove it: it is rebuilt from the tar when the run is resumed"


@dataclass(frozen=True)
class Record:
    """What shard `index` holds. The fields up to `quarantined` are its identity; the rest says how this copy was made.

    `first`, `planned`: its samples of the plan; `count`: samples in the tar; `bytes`, `sha256`: of the tar;
    `plan_digest`: identity of its planned samples; `seconds`: time to make it; `finished`: when (Unix time).
    `device_seconds`: time of its drawing times the devices that the worker held (GPUs or a part of one, or CPU
    threads); `joules`: their energy; `drawn`: samples drawn, those that failed the gate included. These are None where
    nobody measured them.
    """

    shard: str
    index: int
    first: int
    planned: int
    count: int
    bytes: int
    sha256: str
    plan_digest: str
    quarantined: tuple[Quarantined, ...] = ()
    attempt: int = 0
    host: str = ""
    pid: int = 0
    seconds: float = 0.0
    batch_size: int = 0
    device: str = ""
    finished: float = 0.0
    device_name: str | None = None
    device_seconds: float | None = None
    joules: float | None = None
    drawn: int | None = None

    def identity(self) -> dict[str, object]:
        """The fields that must be equal wherever the shard is made, as plain data."""
        return {key: value for key, value in self._plain().items() if key not in _HOW}

    def to_json(self) -> Encoded:
        """Canonical JSON, with a checksum of its own in `check`."""
        data = {"format": FORMAT, **self._plain()}
        return (canonical_json({**data, "check": _checksum(data)}) + "\n").encode()

    @classmethod
    def from_json(cls, text: Encoded, where: str) -> Record:
        """Read a record; any changed byte raises DataError about `where`."""
        try:
            data = json.loads(text)
            data.pop("check")  # compared below, with all of the text
            version = data.pop("format")
            if version != FORMAT:
                raise DataError(where, f"is of format {version}, this engine reads {FORMAT}", "use the newer engine")
            entries = tuple(Quarantined(**entry) for entry in data.pop("quarantined"))
            record = cls(**data, quarantined=entries)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(where, "is not a shard record", _FIX) from None
        if not _typed(record):
            raise DataError(where, "is not a shard record", _FIX)
        if record.to_json() != text:
            raise DataError(where, "was changed or cut", _FIX)
        return record

    def _plain(self) -> dict[str, object]:
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data = {name: value for name, value in data.items() if value is not None or name not in _COST}
        data["quarantined"] = [entry.to_json() for entry in self.quarantined]
        return data


def make(
    facts: PlanFacts, index: int, shard: ShardBytes, quarantined: Sequence[Quarantined], plan_digest: str, **how: Any
) -> Record:
    """The record of a shard that this process has built; `how`: attempt, seconds, batch_size, device, cost."""
    first, planned = facts.span(index)
    here = {"host": socket.gethostname(), "pid": os.getpid(), "finished": round(time.time(), 3)}
    record = Record(
        shard=facts.shard(index),
        index=index,
        first=first,
        planned=planned,
        count=shard.count,
        bytes=shard.size,
        sha256=shard.sha256,
        plan_digest=plan_digest,
        quarantined=tuple(quarantined),
        **{**here, **how},
    )
    _check_complete(record, tar_path(record.shard))
    return record


def publish(store: Store, record: Record) -> None:
    """Write the record of a tar that this process has published; one left from an older tar gives way."""
    path, data = record_path(record.shard), record.to_json()
    if not store.create(path, data) and not _agrees(store, record):
        store.replace(path, data)


def load(store: Store, shard: str) -> Record | None:
    """The stored record of a shard, None where there is none; raises DataError where it is broken."""
    path = record_path(shard)
    try:
        return Record.from_json(store.read(path), f"{store.url}/{path}")
    except FileNotFoundError:
        return None


def published(store: Store, facts: PlanFacts) -> dict[int, Record | None]:
    """The record of each published shard by its index; None where it is missing or broken."""
    names = {entry.name for entry in store.list(f"{DATA}/")}
    there = [index for index in range(facts.shards) if tar_path(facts.shard(index)) in names]

    def one(index: int) -> Record | None:
        try:
            return load(store, facts.shard(index))
        except DataError:
            return None

    return dict(zip(there, mapped(one, there), strict=True))


def rebuild(store: Store, facts: PlanFacts, index: int, plan_digest: str) -> Record:
    """Make the record again from the published tar alone; raises DataError where the tar is not the planned shard."""
    first, planned = facts.span(index)
    shard = facts.shard(index)
    where = f"{store.url}/{tar_path(shard)}"
    try:
        data = store.read(tar_path(shard))
    except FileNotFoundError:
        raise DataError(where, "is missing", "resume the run: it is made again") from None
    contents = read_tar(io.BytesIO(data), where)
    record = Record(
        shard=shard,
        index=index,
        first=first,
        planned=planned,
        count=len(contents.keys),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        plan_digest=plan_digest,
        quarantined=contents.quarantined,
    )
    _check_complete(record, where)
    gone = {entry.index for entry in contents.quarantined}
    expected = [facts.key(i) for i in range(first, first + planned) if i not in gone]
    if list(contents.keys) != expected:
        raise DataError(where, "does not hold the samples that were planned for it", "remove it and resume the run")
    return record


def pending(store: Store, facts: PlanFacts) -> list[int]:
    """Indices of the shards whose tar is not there yet; records without a tar are removed, as they describe nothing."""
    names = {entry.name for entry in store.list(f"{DATA}/")}
    missing = [index for index in range(facts.shards) if tar_path(facts.shard(index)) not in names]
    for index in missing:
        if record_path(facts.shard(index)) in names:
            store.remove(record_path(facts.shard(index)))
    return missing


def _agrees(store: Store, record: Record) -> bool:
    try:
        stored = load(store, record.shard)
    except DataError:
        return False
    return stored is not None and stored.identity() == record.identity()


def _check_complete(record: Record, where: str) -> None:
    """Every planned sample is either in the tar or quarantined."""
    span = range(record.first, record.first + record.planned)
    if record.count + len(record.quarantined) != record.planned or not _inside(record.quarantined, span):
        raise DataError(
            where,
            f"holds {record.count} samples and {len(record.quarantined)} quarantined of {record.planned} planned",
            "remove it and resume the run",
        )


def _typed(record: Record) -> bool:
    """Whether every field has the type of its default or declaration (JSON does not say)."""
    texts = (record.shard, record.sha256, record.plan_digest, record.host, record.device)
    numbers = (record.index, record.first, record.planned, record.count, record.bytes, record.attempt, record.pid)
    times = (record.seconds, record.finished)
    spent = [amount for amount in (record.device_seconds, record.joules) if amount is not None]
    return (
        all(isinstance(text, str) for text in texts)
        and all(type(number) is int for number in (*numbers, record.batch_size))
        and all(type(moment) in (int, float) for moment in (*times, *spent))
        and isinstance(record.device_name, str | None)
        and (record.drawn is None or type(record.drawn) is int)
        and all(entry.is_valid() for entry in record.quarantined)
    )


def _inside(entries: Iterable[Quarantined], span: range) -> bool:
    return all(entry.index in span for entry in entries)


def _checksum(data: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
