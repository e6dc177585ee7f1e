"""Parquet files of the conditions stage that say what they were made from, so that those of other inputs are never
reused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engine import output
from engine.errors import DataError
from engine.regular import Json
from engine.spec import canonical_json, differences
from engine.storage import documents, temporary
from engine.storage.store import Store

CAPTIONS = output.CAPTIONS
FEATURES = output.FEATURES
CLASSES = output.CLASSES
FITS = output.FITS
PLAN = output.PLAN
METADATA = b"mimeo"
GROUP = 65536  # rows a row group


def publish(store: Store, name: str, table: pa.Table, made_from: Mapping[str, object], **facts: Any) -> None:
    """Write a table whole; `made_from` decides later whether it is still the right one, `facts` travel along."""
    metadata = {METADATA: canonical_json({"made_from": made_from, **facts}).encode()}
    with temporary.folder("table") as folder:
        path = folder / "table.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=GROUP, compression="zstd")
        store.create(name, path)


def facts(store: Store, name: str) -> Json | None:
    """What a stored table says about itself; None when it is absent, DataError when it cannot be read."""
    if not store.exists(name):
        return None
    try:
        with store.open(name) as stream:
            schema = pq.read_schema(stream)
        text = (schema.metadata or {})[METADATA]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(name, f"cannot be read ({error})", "remove it and run the same command again") from None
    return documents.parse(text, Json, f"{store.url}/{name}", "remove it and run the same command again")


def read(store: Store, name: str) -> tuple[pa.Table, Json]:
    """A stored table and what it says about itself; DataError when it is absent or cannot be read."""
    about = facts(store, name)
    if about is None:
        raise DataError(name, "is absent", "run `mimeo condition` first")
    try:
        with store.open(name) as stream:
            return pq.read_table(stream), about
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(name, f"cannot be read ({error})", "remove it and run the same command again") from None


def is_current(store: Store, names: tuple[str, ...], made_from: Mapping[str, object]) -> bool:
    """Whether the first of `names` was made from just this.

    Files made from something else are removed, `names` and all, while nothing was generated from them yet; after that
    they are refused (DataError), since shards already published belong to them.
    """
    about = facts(store, names[0])
    if about is not None and about.get("made_from") == made_from:
        return True
    old = {} if about is None else about.get("made_from", {})
    if about is not None and store.exists(PLAN):
        changed = ", ".join(differences(old, made_from)[:3])
        raise DataError(
            names[0], f"was made from other inputs ({changed})", "use a new output for the changed model or data"
        )
    for name in reversed(names):
        store.remove(name)
    return False


def as_lists(values: NDArray[np.float32]) -> pa.Array:
    """A matrix (N,D) as a column of lists of D numbers."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), pa.float32())
    offsets = np.arange(len(values) + 1, dtype=np.int64) * values.shape[1]
    return pa.LargeListArray.from_arrays(offsets, flat)


def as_matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of N lists of D numbers as a matrix (N,D)."""
    flat = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return flat.reshape(len(column), -1) if len(flat) else np.empty((len(column), 0), np.float32)
