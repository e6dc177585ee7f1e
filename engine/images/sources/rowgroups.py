"""What reading a Parquet file costs, by what its footer says: batches of bounded size, and files that unpack to far
more refused."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import DataError

IMAGE_ROWS = 64  # encoded images that are in memory at once beside one compressed row group
LABEL_ROWS = 1 << 16
BUDGET = 1 << 28  # bytes that the values of one batch may take
LARGE, RATIO = 1 << 28, 200  # bytes from which a column that packs so well is no set of images


def starts(file: pq.ParquetFile) -> list[int]:
    """First row of each row group, and the number of rows."""
    counts = (file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))
    return list(accumulate(counts, initial=0))


def refuse_bombs(file: pq.ParquetFile, path: object, where: str) -> None:
    """Refuse more rows than the file has bytes, and columns that unpack to very many times what the file holds;
    DataError."""
    held = file.metadata.serialized_size
    for group in range(file.num_row_groups):
        for chunk in _chunks(file, group):
            packed, whole = chunk.total_compressed_size, chunk.total_uncompressed_size
            held += max(0, packed)
            if whole > LARGE and whole > RATIO * packed:
                what = f"column {chunk.path_in_schema} of {path} unpacks from {packed:,} to {whole:,} bytes"
                raise DataError(where, what, "write the images as they are encoded, without such padding")
    if file.metadata.num_rows > held:
        what = f"{path} has {file.metadata.num_rows:,} rows in {held:,} bytes"
        raise DataError(where, what, "write one row for each image")


def values(file: pq.ParquetFile, group: int, column: str) -> Iterator[list[Any]]:
    """The values of a column of labels, batch by batch."""
    text = not pa.types.is_primitive(file.schema_arrow.field(column).type)
    rows = _rows(file, group, column, LABEL_ROWS) if text else LABEL_ROWS
    for batch in file.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
        yield batch.column(0).to_pylist()


def images(file: pq.ParquetFile, group: int, leaf: str) -> Iterator[pa.Array]:
    """The encoded images of a row group, batch by batch."""
    rows = _rows(file, group, leaf, IMAGE_ROWS)
    for batch in file.iter_batches(rows, row_groups=[group], columns=[leaf], use_threads=False):
        column = batch.column(0)
        yield column.field("bytes") if pa.types.is_struct(column.type) else column


def _rows(file: pq.ParquetFile, group: int, leaf: str, most: int) -> int:
    """Rows of a batch: few where the rows may share one large value, which is repeated for each of them when it is
    read."""
    for chunk in _chunks(file, group):
        shared = any("DICTIONARY" in encoding for encoding in chunk.encodings)
        if chunk.path_in_schema == leaf and shared and chunk.total_uncompressed_size > 0:
            return max(1, min(most, BUDGET // chunk.total_uncompressed_size))
    return most


def _chunks(file: pq.ParquetFile, group: int) -> Iterator[Any]:
    row_group = file.metadata.row_group(group)
    yield from (row_group.column(i) for i in range(row_group.num_columns))
