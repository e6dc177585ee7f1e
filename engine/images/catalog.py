"""The catalog: every good real image once, with its class, its split and where its bytes lie; the others with a
reason."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NotRequired

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import TypedDict

from engine import output
from engine.cluster.progress import Reporter
from engine.errors import DataError, StorageError
from engine.images import apart
from engine.images.apart import NearDuplicates
from engine.images.arrangement import SCHEMA, arranged, counted
from engine.images.columns import fitted, from_parquet, to_parquet, wide
from engine.images.inspection import places_table, reasons
from engine.images.isolation import forget_attempts, inspect_once
from engine.images.listing import QUICK, UNLABELLED, Bad, Candidate, Listing, check_memory
from engine.images.sources import ImageSource, hub_source
from engine.images.sources.source import GROUP
from engine.images.splits import NAMES
from engine.spec import RunSpec
from engine.spec.recipe import ImagesSpec
from engine.storage import documents
from engine.storage.store import Store

QUARANTINE = pa.schema(
    [(name, pa.string()) for name in ("key", "set", "class_name", "reason", "detail", "duplicate_of")]
)
TABLE, QUARANTINED, DONE = output.CATALOG, output.CATALOG_QUARANTINE, output.CATALOG_DONE
NEAR_DUPLICATES = output.CATALOG_NEAR_DUPLICATES
FAULT = "storage_fault"  # a task's StorageError on its way to the driver
WAVE = 256  # chunks of places that are in the object store at once: about 130,000 images
DIGEST_COLUMNS = ("key", "label", "split", "pixels_sha256")


class Done(TypedDict):
    """What is read of `catalog/_done.json`."""

    class_names: list[str]
    digest: str
    quarantined: int
    near_duplicates: NotRequired[dict[str, int]]


@dataclass(frozen=True)
class Catalog:
    """`table` has the columns of SCHEMA, sorted by key; `digest` is a SHA-256 over keys, labels, splits and pixels.

    `near_duplicates` is None in a catalog that was made before they were looked for.
    """

    table: pa.Table
    class_names: tuple[str, ...]
    quarantined: int
    digest: str
    near_duplicates: NearDuplicates | None = None

    def split(self, name: str) -> pa.Table:
        """Rows of "train", "validation", "test" or "unused", sorted by key."""
        if name not in NAMES:
            raise KeyError(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, pa.Table]:
        return {name: self.table.filter(pc.equal(self.table["split"], name)).combine_chunks() for name in NAMES}


def precheck(spec: RunSpec) -> None:
    """Find a missing or empty place, an empty class, a split that cannot be and the like in about a second, without
    Ray.

    Opens no image. Raises DataError or ConfigError. What needs every image is found by `build`.
    """
    try:
        listing = Listing(spec)
    except hub_source.NotCached as absent:
        absent.check_reachable()
    else:
        listing.check(spec.split)


def listed_classes(spec: RunSpec) -> tuple[str, ...]:
    """Class names of the source as far as they are known without Ray in about a second: declared, or of the first
    entries."""
    try:
        listing = Listing(spec)
    except hub_source.NotCached:
        return ()
    if listing.labels.declared is not None:
        return listing.labels.declared
    if getattr(spec.source, "limit", None) is not None:
        return ()  # to cut a set at its limit, it is listed whole
    seen = 0
    for group in listing.groups():
        seen += len(group)
        if seen > QUICK:
            break
    return listing.labels.classes()[0]


def build(spec: RunSpec, store: Store, reporter: Reporter) -> Catalog:
    """Inspect every image of the source with Ray Data and publish the catalog; the stored one is returned when it is
    done.

    Call it inside a Ray session. The files' bytes depend on the images and the spec alone, not on how many tasks ran.
    Raises DataError when more than images.max_bad_fraction of the images is bad, a class has no good one, or nothing is
    there.
    """
    if store.exists(DONE):
        return load(store)
    listing = Listing(spec, download=True)
    listing.check(spec.split)
    forget_attempts(store)
    facts = list(_inspected(listing, spec, store, reporter))
    forget_attempts(store)
    names, numbers = listing.classes()
    found = arranged(facts, listing.bad, names, numbers, spec, given_test="test" in listing.sets)
    near = apart.counts(found.alike)
    catalog = Catalog(found.table, names, len(found.left_out), table_digest(found.table), near)
    store.replace(NEAR_DUPLICATES, to_parquet(found.alike, apart.SCHEMA))
    _publish(catalog, _quarantine_table(found.left_out, names, numbers), store)
    if listing.skipped:
        reporter.note(f"passed over: {counted(listing.skipped)}")
    reasons_found = Counter(entry.reason for entry in found.left_out)
    if reasons_found:
        reporter.note(f"quarantined: {counted(reasons_found)}; listed in {QUARANTINED}")
    if near.groups:
        reporter.note(f"{near.words()}; listed in {NEAR_DUPLICATES}")
    return catalog


def load(store: Store) -> Catalog:
    """The published catalog; raises DataError when it is missing or is not what its marker says."""
    try:
        done = documents.read(store, DONE, Done, "remove catalog/ and run again")
        table = from_parquet(store.read(TABLE), SCHEMA)
    except FileNotFoundError:
        raise DataError(
            "catalog", f"{store.url} holds no finished catalog", "run mimeo condition or mimeo run"
        ) from None
    except (ValueError, pa.ArrowException) as error:
        raise DataError(
            "catalog", f"cannot be read ({str(error).splitlines()[0]})", "remove catalog/ and run again"
        ) from None
    if table_digest(table) != done["digest"]:
        raise DataError(TABLE, "is not the catalog that _done.json describes", "remove catalog/ and run again")
    near = NearDuplicates(**done["near_duplicates"]) if "near_duplicates" in done else None
    return Catalog(table, tuple(done["class_names"]), done["quarantined"], done["digest"], near)


def table_digest(table: pa.Table) -> str:
    """SHA-256 (hex) over lines of key, label, split and pixels digest, in row order."""
    digest = hashlib.sha256()
    for batch in table.select(DIGEST_COLUMNS).to_batches(max_chunksize=1 << 16):
        columns = [pc.cast(batch[name], pa.large_string()) for name in DIGEST_COLUMNS]
        lines = pc.binary_join_element_wise(*columns, pa.scalar("\t", pa.large_string()))
        digest.update("".join(f"{line}\n" for line in lines.to_pylist()).encode())
    return digest.hexdigest()


def _chunks(groups: Iterator[list[Candidate]]) -> Iterator[list[Candidate]]:
    """Small groups joined to about GROUP images, so that a task is worth starting."""
    chunk: list[Candidate] = []
    for group in groups:
        if chunk and len(chunk) + len(group) > GROUP:
            yield chunk
            chunk = []
        chunk += group
    if chunk:
        yield chunk


def _inspected(listing: Listing, spec: RunSpec, store: Store, reporter: Reporter) -> Iterator[pa.Table]:
    """FACTS tables from Ray Data, in whatever order tasks end; only places and facts travel, never images."""
    import ray

    look = functools.partial(_look, sets=listing.sets, images=spec.images, store=store)
    chunks = _chunks(listing.groups())
    known = done = bad = 0
    with reporter.task("catalog", 0) as task:
        while wave := [places_table(chunk) for chunk in itertools.islice(chunks, WAVE)]:
            known += sum(table.num_rows for table in wave)
            check_memory(known)
            task.total = known
            task.update(done)
            data = ray.data.from_arrow(wave).map_batches(look, batch_size=None, batch_format="pyarrow", num_cpus=1)
            blocks: Iterable[Any] = data.iter_batches(batch_size=None, batch_format="pyarrow")
            for block in blocks:
                _raise_fault(block)
                done += block.num_rows
                bad += pc.sum(pc.not_equal(block["reason"], "")).as_py() or 0
                task.update(done, bad=bad)
                yield block


def _look(table: pa.Table, sets: Mapping[str, ImageSource], images: ImagesSpec, store: Store) -> pa.Table:
    """`inspect_once`; a store that refuses comes back as a value, as Ray would wrap the exception."""
    try:
        return inspect_once(table, sets, images, store)
    except StorageError as error:
        return reasons(table.slice(0, 1), FAULT, json.dumps([error.where, error.what, error.fix]))


def _raise_fault(block: pa.Table) -> None:
    found = block.filter(pc.equal(block["reason"], FAULT))
    if found.num_rows:
        raise StorageError(*json.loads(found["detail"][0].as_py()))


def _quarantine_table(bad: list[Bad], names: tuple[str, ...], numbers: np.ndarray) -> pa.Table:
    def class_name(code: int) -> str:
        return "" if code == UNLABELLED else names[numbers[code]]

    ordered = sorted(bad, key=lambda entry: (entry.key, entry.reason))
    columns = [
        [entry.key for entry in ordered],
        [entry.set for entry in ordered],
        [class_name(entry.code) for entry in ordered],
        [entry.reason for entry in ordered],
        ["".join(c if c.isprintable() else " " for c in entry.detail) for entry in ordered],
        [entry.duplicate_of for entry in ordered],
    ]
    return fitted(pa.table(columns, schema=wide(QUARANTINE)), QUARANTINE)


def restrict(catalog: Catalog, keys: Sequence[str]) -> Catalog:
    """The catalog with only these training images; the other training images become "unused"."""
    kept = pc.is_in(catalog.table["key"], value_set=pa.array(keys, catalog.table["key"].type))
    return _set_aside(catalog, pc.and_(pc.equal(catalog.table["split"], "train"), pc.invert(kept)))


def withheld(catalog: Catalog) -> Catalog:
    """The catalog whose test images are "unused": nothing that is given it can find them."""
    return _set_aside(catalog, pc.equal(catalog.table["split"], "test"))


def _set_aside(catalog: Catalog, rows: pa.ChunkedArray) -> Catalog:
    own = catalog.table["split"]
    splits = pc.if_else(rows, pa.scalar("unused", own.type), own)
    table = catalog.table.set_column(SCHEMA.get_field_index("split"), "split", splits).combine_chunks()
    return replace(catalog, table=table, digest=table_digest(table))


def quarantine(store: Store) -> pa.Table:
    """The published list of bad and duplicate images (QUARANTINE); DataError where it cannot be read."""
    try:
        return from_parquet(store.read(QUARANTINED), QUARANTINE)
    except FileNotFoundError:
        raise DataError(f"{store.url}/{QUARANTINED}", "is missing", "remove catalog/ and run again") from None
    except (ValueError, OSError, pa.ArrowException) as error:
        what = f"cannot be read ({str(error).splitlines()[0]})"
        raise DataError(f"{store.url}/{QUARANTINED}", what, "remove catalog/ and run again") from None


def copy(catalog: Catalog, source: Store, target: Store) -> None:
    """Publish a catalog (that of `source`, or one restricted from it) in another output, quarantine list and all."""
    _publish(catalog, quarantine(source), target)


def _publish(catalog: Catalog, quarantine: pa.Table, store: Store) -> None:
    store.replace(TABLE, to_parquet(catalog.table, SCHEMA))
    store.replace(QUARANTINED, to_parquet(quarantine, QUARANTINE))
    done = {
        "class_names": list(catalog.class_names),
        "digest": catalog.digest,
        "images": catalog.table.num_rows,
        "quarantined": catalog.quarantined,
        "reasons": dict(sorted(Counter(quarantine["reason"].to_pylist()).items())),
        "splits": {name: catalog.split(name).num_rows for name in NAMES},
    }
    if catalog.near_duplicates is not None:
        done["near_duplicates"] = catalog.near_duplicates.to_json()
    store.replace(DONE, (json.dumps(done, indent=1, ensure_ascii=False) + "\n").encode())
