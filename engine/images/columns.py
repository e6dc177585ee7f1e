"""Tables whose text columns may pass 2 GiB, which is all that Arrow's `string` can sort, take and join at once."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq

NARROW_BYTES = 2**31 - 1
ROW_GROUP = 1 << 16


def wide(schema: pa.Schema) -> pa.Schema:
    """The schema with `large_string` for `string`, whose columns have no such bound."""
    return pa.schema([(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in schema])


def fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in one chunk, with the columns of `schema` where its `string` columns hold them, else with wide
    ones."""
    fits = all(table[f.name].nbytes <= NARROW_BYTES for f in schema if f.type == pa.string())
    return table.cast(schema if fits else wide(schema)).combine_chunks()


def to_parquet(table: pa.Table, schema: pa.Schema) -> bytes:
    """The bytes of a Parquet file with the columns of `schema`, the same for wide and narrow tables."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for start in range(0, max(1, table.num_rows), ROW_GROUP):
            rows = table.slice(start, ROW_GROUP)
            if rows.schema != schema:  # a slice keeps offsets that `string` has not
                rows = rows.take(pa.array(range(rows.num_rows))).cast(schema)
            writer.write_table(rows)
    return buffer.getvalue()


def from_parquet(data: bytes, schema: pa.Schema) -> pa.Table:
    """What `to_parquet` wrote; raises Arrow's and ValueError where it is not that."""
    return fitted(pq.read_table(io.BytesIO(data), schema=wide(schema)), schema)
