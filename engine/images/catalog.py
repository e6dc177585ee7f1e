"""The catalog: every good real image once, with its class, its split and where its bytes lie; the others with a reason."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.cluster.progress import Reporter
from engine.errors import DataError, StorageError
from engine.images.columns import ROW_GROUP, fitted, from_parquet, to_parquet, wide
from engine.images.inspection import FACTS, places_table, reasons
from engine.images.isolation import forget_attempts, inspect_once
from engine.images.listing import UNLABELLED, Bad, Candidate, Listing, check_memory
from engine.images.sources import ImageSource, hub
from engine.images.sources.base import GROUP
from engine.images.splits import NAMES, assign, refuse_empty_test, require_all
from engine.spec import RunSpec
from engine.spec.models import ImagesSpec
from engine.storage.store import Store

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("split", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("row", pa.int64()),
        ("sha256", pa.string()),
        ("pixels_sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("mode", pa.string()),
        ("format", pa.string()),
        ("notes", pa.string()),
    ]
)
QUARANTINE = pa.schema(
    [(name, pa.string()) for name in ("key", "set", "class_name", "reason", "detail", "duplicate_of")]
)
TABLE, QUARANTINED, DONE = "catalog/catalog.parquet", "catalog/quarantine.parquet", "catalog/_done.json"
FAULT = "storage_fault"  # a task's StorageError on its way to the driver
WAVE = 256  # chunks of places that are in the object store at once: about 130,000 images
DIGEST_COLUMNS = ("key", "label", "split", "pixels_sha256")


@dataclass(frozen=True)
class Catalog:
    """`table` has the columns of SCHEMA, sorted by key; `digest` is a SHA-256 over keys, labels, splits and pixels."""

    table: pa.Table
    class_names: tuple[str, ...]
    quarantined: int
    digest: str

    def split(self, name: str) -> pa.Table:
        """Rows of "train", "validation", "test" or "unused", sorted by key."""
        if name not in NAMES:
            raise KeyError(name)
        return self._splits[name]

    @cached_property
    def _splits(self) -> dict[str, pa.Table]:
        return {name: self.table.filter(pc.equal(self.table["split"], name)).combine_chunks() for name in NAMES}


def precheck(spec: RunSpec) -> None:
    """Find a missing or empty place, an empty class, a split that cannot be and the like in about a second, without Ray.

    Opens no image. Raises DataError or ConfigError. What needs every image is found by `build`.
    """
    try:
        listing = Listing(spec)
    except hub.NotCached as absent:
        absent.check_reachable()
    else:
        listing.check(spec.split)


def build(spec: RunSpec, store: Store, reporter: Reporter) -> Catalog:
    """Inspect every image of the source with Ray Data and publish the catalog; the stored one is returned when it is done.

    Call it inside a Ray session. The files' bytes depend on the images and the spec alone, not on how many tasks ran. Raises
    DataError when more than images.max_bad_fraction of the images is bad, a class has no good one, or nothing is there.
    """
    if store.exists(DONE):
        return load(store)
    listing = Listing(spec, download=True)
    listing.check(spec.split)
    forget_attempts(store)
    facts = list(_inspected(listing, spec, store, reporter))
    forget_attempts(store)
    names, numbers = listing.classes()
    table, bad = arranged(facts, listing.bad, names, numbers, spec, given_test="test" in listing.sets)
    catalog = Catalog(table, names, len(bad), table_digest(table))
    _publish(catalog, _quarantine_table(bad, names, numbers), store)
    found = Counter(entry.reason for entry in bad)
    if found:
        reporter.note(f"quarantined: {_told(found)}; listed in {QUARANTINED}")
    return catalog


def arranged(
    facts: list[pa.Table],
    known_bad: list[Bad],
    names: tuple[str, ...],
    numbers: np.ndarray,
    spec: RunSpec,
    *,
    given_test: bool,
) -> tuple[pa.Table, list[Bad]]:
    """The catalog's table from what inspection found (`facts`, which is emptied), and all that is not used.

    Takes a time that grows with the images, and MEMORY bytes for each. Raises DataError as `build` does.
    """
    whole = pa.concat_tables([FACTS.empty_table(), *facts]).cast(wide(FACTS))
    facts.clear()
    whole = whole.sort_by("key").combine_chunks()
    usable = pc.equal(whole["reason"], "")
    bad = known_bad + _bad_rows(whole.filter(pc.invert(usable)))
    good = whole.filter(usable) if len(bad) > len(known_bad) else whole
    del whole
    _check_bad(good.num_rows, bad, spec)
    good, repeated = _distinct(good, [names[n] for n in numbers.tolist()])
    return _split_table(good, names, numbers, spec, bad + repeated if given_test else None), bad + repeated


def load(store: Store) -> Catalog:
    """The published catalog; raises DataError when it is missing or is not what its marker says."""
    try:
        done = json.loads(store.read(DONE))
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
    return Catalog(table, tuple(done["class_names"]), int(done["quarantined"]), str(done["digest"]))


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


def _bad_rows(facts: pa.Table) -> list[Bad]:
    columns = [facts[name].to_pylist() for name in ("set", "key", "code", "reason", "detail")]
    return [Bad(*row) for row in zip(*columns, strict=True)]


def _told(reasons: Counter[str]) -> str:
    return ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(reasons.items(), key=lambda r: (-r[1], r[0]))[:6]
    )


def _check_bad(good: int, bad: list[Bad], spec: RunSpec) -> None:
    if getattr(spec.source, "class_names", None) is not None:  # what it leaves out is not bad
        bad = [entry for entry in bad if entry.reason != "unknown_label"]
    total = good + len(bad)
    if total == 0:
        raise DataError("source", "holds no image of its classes", "check the path, and source.class_names")
    if good == 0 or len(bad) > spec.images.max_bad_fraction * total:
        limit = "" if good == 0 else f", images.max_bad_fraction is {spec.images.max_bad_fraction:g}"
        told = _told(Counter(entry.reason for entry in bad))
        first = f"{bad[0].key[:80]}: {bad[0].detail[:80]}"
        fix = f"look at the first, {first}"
        raise DataError("source", f"{len(bad):,} of {total:,} images cannot be used ({told}){limit}", fix)


def _distinct(good: pa.Table, class_of: list[str]) -> tuple[pa.Table, list[Bad]]:
    """Keep the first of images with equal pixels: a given test set's before others, then by key; and the rest with the reason.

    Where images of one set have equal pixels and different labels, one of the labels is wrong: all of them go.
    """
    pixels = good["pixels_sha256"].combine_chunks().dictionary_encode().indices.to_numpy()
    code, in_main = good["code"].to_numpy(), pc.not_equal(good["set"], "test").to_numpy()
    order = np.argsort(in_main, kind="stable")
    _, first = np.unique(pixels[order], return_index=True)
    other = order[first][pixels]  # the row that is kept for each row
    torn = (code != code[other]) & (in_main == in_main[other])
    conflict = np.isin(pixels, pixels[torn]) & (in_main == in_main[other])
    repeated = np.flatnonzero((other != np.arange(len(other))) | conflict)
    columns = [good[name].take(repeated).to_pylist() for name in ("set", "key", "sha256")]
    against = [good[name].take(other[repeated]).to_pylist() for name in ("key", "sha256")]
    gone = []
    for row, own, key, file, kept, its_file in zip(repeated.tolist(), *columns, *against, strict=True):
        detail = f"same {'bytes' if file == its_file else 'pixels'} as {kept}"
        if code[row] != code[other[row]]:
            detail += f", which is labelled {class_of[code[other[row]]]} and not {class_of[code[row]]}"
        if conflict[row]:
            detail = detail if kept != key else "its pixels have other labels too"
            gone.append(Bad(own, key, int(code[row]), "label_conflict", detail, kept if kept != key else ""))
        else:
            gone.append(Bad(own, key, int(code[row]), "duplicate", detail, kept))
    keep = np.ones(good.num_rows, bool)
    keep[repeated] = False
    return good.filter(pa.array(keep)) if len(repeated) else good, gone


def _split_table(
    good: pa.Table, names: tuple[str, ...], numbers: np.ndarray, spec: RunSpec, test_bad: list[Bad] | None
) -> pa.Table:
    """SCHEMA's columns; `test_bad` holds what is not used where a test set is given, and is None where none is."""
    labels = numbers[good["code"].to_numpy()].astype(np.int32)
    in_test = pc.equal(good["set"], "test").to_numpy()
    require_all(np.bincount(labels[~in_test], minlength=len(names)), names, "good, distinct image")
    if test_bad is not None and not in_test.any():
        refuse_empty_test(entry.reason for entry in test_bad if entry.set)
    pixels = (text for chunk in good["pixels_sha256"].chunks for text in _texts(chunk))
    splits = assign(spec.split, spec.seed, labels, pixels, in_test, len(names))
    made = {
        "label": pa.array(labels, pa.int32()),
        "class_name": _named(labels, names),
        "split": _named(splits.astype(np.int32), NAMES),
    }
    columns = [made[name] if name in made else good[name] for name in SCHEMA.names]
    return fitted(pa.table(columns, schema=wide(SCHEMA)), SCHEMA)


def _texts(column: pa.Array) -> Iterator[str]:
    """The values of a column, some at a time."""
    for start in range(0, len(column), ROW_GROUP):
        yield from column.slice(start, ROW_GROUP).to_pylist()


def _named(numbers: np.ndarray, names: Sequence[str]) -> pa.Array:
    """The name of each number."""
    return pa.DictionaryArray.from_arrays(pa.array(numbers), pa.array(names, pa.large_string())).dictionary_decode()


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
    return Catalog(table, catalog.class_names, catalog.quarantined, table_digest(table))


def copy(catalog: Catalog, source: Store, target: Store) -> None:
    """Publish a catalog (that of `source`, or one restricted from it) in another output, quarantine list and all."""
    quarantine = from_parquet(source.read(QUARANTINED), QUARANTINE)
    _publish(catalog, quarantine, target)


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
    store.replace(DONE, (json.dumps(done, indent=1, ensure_ascii=False) + "\n").encode())
