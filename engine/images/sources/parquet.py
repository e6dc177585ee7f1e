"""Parquet in the Hugging Face image layout, read row group by row group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import ConfigError, DataError
from engine.images.decode import BadImage
from engine.images.labels import near_match, parse_label, same_but_spelling
from engine.images.sources import rowgroups, split_folders
from engine.images.sources.source import Place, Ref, Rejected, Root, decode_name, encode_name, find_files, read_by_file
from engine.spec.recipe import ImagesSpec, ParquetSource
from engine.storage.paths import RemotePath

CHECKED_ROWS = 2_000_000  # labels that are read before Ray starts; of larger sets the catalog finds an empty class


@dataclass(frozen=True)
class Naming:
    """The class names of a set: those that the first file of the main set declares, and those that the recipe gives.

    Numbers of a file are read by the names that this very file declares, and by these where it declares none. The
    recipe's names choose among the declared ones, or, where none of them is one of these, rename them in their order.
    """

    declared: tuple[str, ...] | None
    chosen: tuple[str, ...] | None

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names of the set; None where labels are names in themselves."""
        return self.chosen if self.chosen is not None else self.declared

    def check(self) -> None:
        """Refuse recipe's names that neither choose among the declared names nor rename them all (DataError)."""
        if self.declared is None or self.chosen is None or set(self.chosen) <= set(self.declared):
            return
        known = set(self.chosen) & set(self.declared)
        name = next(name for name in self.chosen if name not in self.declared)
        spelt = any(same_but_spelling(other, self.declared) for other in self.chosen if other not in known)
        if known or spelt or len(self.chosen) != len(self.declared):
            near = near_match(name, self.declared)
            shown = ", ".join(self.declared[:5]) + (", ..." if len(self.declared) > 5 else "")
            what = f"{name!r} is none of the {len(self.declared)} names that the data declares ({shown})"
            fix = f"did you mean {near!r}?" if near else "choose some of these, or rename all of them in this order"
            raise DataError("source.class_names", what, fix)

    def table(self, own: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The class of each number of a file that declares `own` names; None where numbers are positions in `names`."""
        if own is None or own == self.names:
            return None
        if self.declared is None or self.chosen is None or set(self.chosen) <= set(self.declared):
            return own
        new = dict(zip(self.declared, self.chosen, strict=True))
        return tuple(new.get(name, name) for name in own)


class ParquetFiles:
    """Rows of {bytes, path} (or plain bytes) and a label; class names from the files' Hugging Face metadata when they
    have them.

    `naming`: that of the main set, where this is its test set. `given`: the path of the recipe that names the files.
    """

    class_names: tuple[str, ...] | None
    skipped: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        root: Root,
        names: Sequence[str],
        *,
        where: str,
        image_column: str,
        label_column: str,
        class_names: tuple[str, ...] | None,
        naming: Naming | None = None,
        given: str | None = None,
    ) -> None:
        self.root, self.names, self.where, self.given = root, tuple(names), where, given
        self.image_column, self.label_column = image_column, label_column
        schema = self._open(self.names[0]).schema_arrow
        self._check_columns(schema)
        self.complete = naming is None
        self.naming = naming or Naming(declared_names(schema, label_column), class_names)
        self.class_names = self.naming.names
        self._rows: int | None = None

    def _open(self, name: str) -> pq.ParquetFile:
        path = self.root / name
        try:
            source = path.open(block=0) if isinstance(path, RemotePath) else path  # columns by their byte ranges
            return pq.ParquetFile(source, memory_map=False)
        except (pa.ArrowInvalid, pa.ArrowIOError) as error:
            first = str(error).splitlines()[0]
            raise DataError(self.where, f"{path} is no readable Parquet file ({first})", "fetch it again") from None

    def _check_columns(self, schema: pa.Schema, name: str | None = None) -> None:
        for key, column in (("source.image_column", self.image_column), ("source.label_column", self.label_column)):
            if column not in schema.names:
                path = self.root / (name or self.names[0])
                near = near_match(column, schema.names)
                fix = f"did you mean {near}?" if near else f"columns: {', '.join(schema.names)}"
                if f"{column}=" in str(path):
                    fix = "folder names hold it: write it into the files as a column"
                raise ConfigError(key, f"{path} has no column {column!r}", fix)
        self._leaf(schema)
        label = schema.field(self.label_column).type
        value = label.value_type if pa.types.is_dictionary(label) else label
        if not (pa.types.is_integer(value) or _is_text(value) or pa.types.is_boolean(value)):
            raise ConfigError(
                "source.label_column",
                f"column {self.label_column!r} holds {label}",
                "labels must be whole numbers or text",
            )

    def _leaf(self, schema: pa.Schema) -> str:
        """The Parquet column that holds the encoded bytes."""
        kind = schema.field(self.image_column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{self.image_column}.bytes"
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return self.image_column
        raise ConfigError(
            "source.image_column",
            f"column {self.image_column!r} holds {kind}",
            "images must be a struct of bytes and path, or bytes",
        )

    def check(self) -> None:
        """Refuse files of several splits, without rows or images, or that do not fit together, and empty classes of the
        main set."""
        if self.given is not None:
            split_folders.check_files(self.root, self.names, self.given, self.where)
        self.naming.check()
        files = [self._open(name) for name in self.names]
        for name, file in zip(self.names, files, strict=True):
            rowgroups.refuse_bombs(file, self.root / name, self.where)
        rows = sum(file.metadata.num_rows for file in files)
        self._rows = rows
        if rows == 0:
            raise DataError(self.where, f"{self.root / self.names[0]} holds no rows", "check the files")
        self._check_parts(files)
        if all(_no_bytes(file, self._leaf(file.schema_arrow)) for file in files):
            what = f"column {self.image_column!r} holds paths of images and no bytes"
            raise DataError(self.where, what, "write the bytes into the files")
        if self.class_names is None or not self.complete or rows > CHECKED_ROWS:
            return
        seen: set[Any] = set()
        for name, file in zip(self.names, files, strict=True):
            values = set[Any]().union(*self._labels(name, file))
            table = self._table(file.schema_arrow) or self.class_names
            seen |= {table[v] if isinstance(v, int) and 0 <= v < len(table) else v for v in values}
        empty = [name for name in self.class_names if name not in seen]
        if empty:
            kept = [name for name in self.class_names if name in seen]
            fix = "add images"
            if len(kept) > 1:
                listed = json.dumps(kept, ensure_ascii=False) if len(kept) <= 20 else "those that are there"
                fix += f", or set source.class_names to {listed}"
            raise DataError(self.where, f"class {empty[0]!r} has no rows", fix)

    def _check_parts(self, files: Sequence[pq.ParquetFile]) -> None:
        """Refuse a part whose numbers have no names where others' have, or that declares a class of its own
        (DataError)."""
        known = declared_names(files[0].schema_arrow, self.label_column)
        kind = _number(files[0].schema_arrow.field(self.label_column).type)
        for name, file in zip(self.names[1:], files[1:], strict=True):
            self._check_columns(file.schema_arrow, name)
            own = declared_names(file.schema_arrow, self.label_column)
            if (own is None) != (known is None) and kind == _number(file.schema_arrow.field(self.label_column).type):
                with_names, without = (name, self.names[0]) if known is None else (self.names[0], name)
                what = f"{with_names} declares names for its class numbers, {without} does not"
                raise DataError(self.where, what, "write all parts with the same names")
            if own is not None and known is not None and set(own) != set(known):
                extra = sorted(set(own) ^ set(known))[0]
                what = f"{self.names[0]} and {name} declare other classes ({extra!r} is in one of them only)"
                raise DataError(self.where, what, "write all parts with the same names")

    def size(self) -> int | None:
        """How many rows the files have, once `check` has read their footers."""
        return self._rows

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        for name in self.names:
            file, uri = self._open(name), encode_name(name)
            self._check_columns(file.schema_arrow, name)
            row, table = 0, self._table(file.schema_arrow)
            for values in self._labels(name, file):
                yield [self._candidate(uri, row + i, value, table) for i, value in enumerate(values)]
                row += len(values)

    def _labels(self, name: str, file: pq.ParquetFile) -> Iterator[list[Any]]:
        """The label column, batch by batch; no batch holds rows of two row groups."""
        try:
            for group in range(file.num_row_groups):
                yield from rowgroups.values(file, group, self.label_column)
        except (OSError, pa.ArrowException) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(self.where, f"{self.root / name} cannot be read ({first})", "fetch it again") from None

    def _table(self, schema: pa.Schema) -> tuple[str, ...] | None:
        return self.naming.table(declared_names(schema, self.label_column))

    def _candidate(self, uri: str, row: int, value: Any, table: tuple[str, ...] | None) -> Ref | Rejected:
        key = f"{uri}/{row:010d}"
        if value is None:
            return Rejected(key, "no_label", f"{self.label_column} is null")
        label = parse_label(int(value) if isinstance(value, bool) else value)
        if table is not None and isinstance(label, int):
            if label >= len(table):
                return Rejected(key, "bad_label", f"{label} has no name in the file")
            label = table[label]
        return (
            Rejected(key, label.reason, label.detail)
            if isinstance(label, BadImage)
            else Ref(key, label, Place(uri, row=row))
        )

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        def read_file(uri: str, positions: list[int]) -> Iterator[tuple[int, bytes | BadImage]]:
            return self._read_file(decode_name(uri), sorted(positions, key=lambda p: places[p].row), places)

        return read_by_file(places, read_file)

    def _read_file(
        self, name: str, positions: list[int], places: Sequence[Place]
    ) -> Iterator[tuple[int, bytes | BadImage]]:
        file = self._open(name)
        leaf, starts = self._leaf(file.schema_arrow), rowgroups.starts(file)
        queue = list(reversed(positions))
        for group in range(file.num_row_groups):
            if queue and places[queue[-1]].row < starts[group + 1]:
                base = starts[group]
                for values in rowgroups.images(file, group, leaf):
                    while queue and places[queue[-1]].row < base + len(values):
                        position = queue.pop()
                        data = values[places[position].row - base].as_py()
                        yield position, BadImage("no_bytes", "the row holds no bytes") if data is None else data
                    base += len(values)
        yield from ((position, BadImage("unreadable", "no such row")) for position in queue)


def _no_bytes(file: pq.ParquetFile, leaf: str) -> bool:
    """Whether the file's own statistics say that not one row has bytes."""
    columns = [
        file.metadata.row_group(g).column(i)
        for g in range(file.num_row_groups)
        for i in range(file.metadata.num_columns)
    ]
    own = [column for column in columns if column.path_in_schema == leaf]
    known = all(c.is_stats_set and c.statistics.has_null_count for c in own)
    return bool(own) and known and all(c.statistics.null_count == c.num_values for c in own)


def _number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def declared_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names of a `ClassLabel` feature in the schema's `huggingface` metadata."""
    raw = (schema.metadata or {}).get(b"huggingface")
    if raw is None:
        return None
    try:
        names = json.loads(raw)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def open_sets(source: ParquetSource, images: ImagesSpec, *, download: bool) -> dict[str, ParquetFiles]:
    """The files, and the test files where they are given; files of the test set are no part of the main one."""
    where = ("source.path", "source.test_path")
    test = find_files(source.test_path, ".parquet", where[1]) if source.test_path is not None else None
    root, names = split_folders.without(find_files(source.path, ".parquet", where[0]), test, where[0])
    files = partial(ParquetFiles, image_column=source.image_column, label_column=source.label_column)
    main = files(root, names, where=where[0], class_names=source.class_names, given=source.path)
    if test is None:
        return {"": main}
    own = files(*test, where=where[1], class_names=None, naming=main.naming, given=source.test_path)
    return {"": main, "test": own}
