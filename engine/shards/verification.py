"""Verification of a finished output: every byte of its shards against the manifest, every other file against its own
seal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from engine.cluster.progress import Reporter
from engine.errors import DataError
from engine.shards import manifest, records
from engine.shards import seal as seals
from engine.shards.manifest import MANIFEST, QUARANTINE, SEAL, ManifestRow, QuarantineRow, Seal
from engine.shards.names import DATA, PLAN, PlanFacts, record_path
from engine.shards.seal import Coverage, content_fault
from engine.spec import spec_hash
from engine.storage.claim import SPEC, read_spec
from engine.storage.parallel import mapped
from engine.storage.store import Store


@dataclass
class Report:
    """What `verify` found: one line a fault, `OBJECT: what`; and how much was looked at."""

    url: str
    faults: list[str] = field(default_factory=list)
    shards: int = 0
    samples: int = 0
    quarantined: int = 0
    bytes: int = 0
    others: Coverage = field(default_factory=Coverage)


def verify(store: Store, reporter: Reporter | None = None) -> Report:
    """Compare a finished output with its manifest and with the seal of its other files, byte for byte.

    Any changed, cut, missing, added, exchanged or renamed file under `data/`, and any change to the manifest, the
    quarantine table or the indexes is a fault; so is a manifest that is not that of `plan.json` and `spec.yaml` where
    these are there, and any other file that is not as `seal.json` says. `others` says what no seal covers.
    Raises only StorageError; faults are in the report.
    """
    report = Report(store.url)
    _check_set(store, report, reporter)
    report.others = seals.check(store)
    report.faults += report.others.faults
    return report


def _check_set(store: Store, report: Report, reporter: Reporter | None) -> None:
    """Faults of the data set, from its manifest on."""
    try:
        seal = manifest.load_seal(store)
    except DataError as error:
        report.faults.append(f"{SEAL}: {error.what}")
        return
    report.faults += _origin_faults(store, seal)
    tables = {name: _sealed(store, seal, name, report) for name in seal.files}
    table, quarantine = tables.get(MANIFEST), tables.get(QUARANTINE)
    if table is None or quarantine is None:
        return
    structure = manifest.structure_faults(seal, table, quarantine)
    report.faults += [f"{MANIFEST}: {what}" for what in structure]
    if not structure:  # else its paths and sizes mean nothing
        _check_files(store, seal, table, quarantine, report, reporter)


def _origin_faults(store: Store, seal: Seal) -> Iterator[str]:
    """Faults of the plan and the recipe that lie beside a manifest."""
    try:
        if store.exists(PLAN) and PlanFacts.load(store) != seal.facts:
            yield f"{PLAN}: is not the plan of this manifest"
    except DataError as error:
        yield f"{PLAN}: {error.what}"
    try:
        if store.exists(SPEC) and spec_hash(read_spec(store)) != seal.facts.spec_hash:
            yield f"{SPEC}: is not the recipe of this manifest"
    except DataError as error:
        yield f"{SPEC}: {error.what}"


def _sealed(store: Store, seal: Seal, name: str, report: Report) -> pa.Table | None:
    """Check one sealed file; the parsed table where it is one of the two tables and whole."""
    where = f"{store.url}/{name}"
    fault = content_fault(store, name, seal.files[name]["bytes"], seal.files[name]["sha256"])
    if fault:
        report.faults.append(f"{name}: {fault}")
        return None
    schemas = {MANIFEST: manifest.SCHEMA, QUARANTINE: manifest.QUARANTINE_SCHEMA}
    try:
        return manifest.parse(store.read(name), schemas[name], where) if name in schemas else None
    except DataError as error:
        report.faults.append(f"{name}: {error.what}")
        return None


def _check_files(
    store: Store, seal: Seal, table: pa.Table, quarantine: pa.Table, report: Report, reporter: Reporter | None
) -> None:
    rows: list[ManifestRow] = table.to_pylist()
    entries: dict[int, list[QuarantineRow]] = {}
    for entry in quarantine.to_pylist():
        entries.setdefault(entry["index"] // seal.facts.shard_size, []).append(entry)
    owners = {row["sha256"]: row["path"] for row in rows}
    expected = {row["path"] for row in rows} | {record_path(row["shard"]) for row in rows} | set(seal.files)
    report.faults += [
        f"{entry.name}: is not part of the data set" for entry in store.list(f"{DATA}/") if entry.name not in expected
    ]

    def check(row: ManifestRow) -> list[str]:
        return _shard_faults(store, row, entries.get(row["index"], []), owners)

    task = reporter.task("verify", len(rows), unit="shards") if reporter else None
    for row, faults in zip(rows, mapped(check, rows, workers=4), strict=True):
        report.faults += faults
        report.shards += 1
        report.samples += row["count"]
        report.quarantined += row["quarantined"]
        report.bytes += row["bytes"]
        if task:
            task.update(report.shards, faults=len(report.faults))
    if task:
        task.close()


def _shard_faults(store: Store, row: ManifestRow, entries: list[QuarantineRow], owners: dict[str, str]) -> list[str]:
    """Faults of one tar and its record."""
    faults = []
    fault = content_fault(store, row["path"], row["bytes"], row["sha256"], owners.get)
    if fault:
        faults.append(f"{row['path']}: {fault}")
    path = record_path(row["shard"])
    try:
        record = records.load(store, row["shard"]) if store.exists(path) else None
    except DataError as error:
        return [*faults, f"{path}: {error.what}"]
    if record is None:
        return [*faults, f"{path}: is missing"]
    said = {**record.identity(), "quarantined": len(record.quarantined)}
    given_up = [(entry.index, entry.label, entry.reason, entry.attempts) for entry in record.quarantined]
    listed = [(entry["index"], entry["label"], entry["reason"], entry["attempts"]) for entry in entries]
    if said != {key: value for key, value in row.items() if key != "path"} or given_up != listed:
        faults.append(f"{path}: does not agree with the manifest")
    return faults
