"""Parquet in the Hugging Face image layout, read row group by row group."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import ConfigError, DataError
from engine.images.decode import BadImage
from engine.images.labels import parse_label
from engine.images.sources import rowgroups
from engine.images.sources.base import Place, Ref, Rejected, Root, decode_name, encode_name, find_files, read_by_file
from engine.spec.models import ImagesSpec, ParquetSource
from engine.storage.paths import RemotePath

CHECKED_ROWS = 2_000_000  # labels that are read before Ray starts; of larger sets the catalog finds an empty class


class ParquetFiles:
    """Rows of {bytes, path} (or plain bytes) and a label; class names from the file's Hugging Face metadata when it has them."""

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
        complete: bool = True,
    ) -> None:
        self.root, self.names, self.where, self.complete = root, tuple(names), where, complete
        self.image_column, self.label_column = image_column, label_column
        schema = self._open(self.names[0]).schema_arrow
        self._check_columns(schema)
        self.class_names = class_names if class_names is not None else _declared_names(schema, label_column)

    def _open(self, name: str) -> pq.ParquetFile:
        path = self.root / name
        try:
            source = path.open(block=0) if isinstance(path, RemotePath) else path  # columns by their byte ranges
            return pq.ParquetFile(source, memory_map=False)
        except (pa.ArrowInvalid, pa.ArrowIOError) as error:
            first = str(error).splitlines()[0]
            raise DataError(self.where, f"{path} is no readable Parquet file ({first})", "fetch it again") from None

    def _check_columns(self, schema: pa.Schema) -> None:
        for key, column in (("source.image_column", self.image_column), ("source.label_column", self.label_column)):
            if column not in schema.names:
                near = difflib.get_close_matches(column, schema.names, n=1)
                fix = f"did you mean {near[0]}?" if near else f"columns: {', '.join(schema.names)}"
                raise ConfigError(key, f"{self.root / self.names[0]} has no column {column!r}", fix)
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
        """Refuse files without rows, and declared classes without one where `complete`; columns were checked on opening."""
        files = [self._open(name) for name in self.names]
        for name, file in zip(self.names, files, strict=True):
            rowgroups.refuse_bombs(file, self.root / name, self.where)
        rows = sum(file.metadata.num_rows for file in files)
        if rows == 0:
            raise DataError(self.where, f"{self.root / self.names[0]} holds no rows", "check the files")
        if self.class_names is None or not self.complete or rows > CHECKED_ROWS:
            return
        seen: set[Any] = set()
        for name, file in zip(self.names, files, strict=True):
            seen.update(*self._labels(name, file))
        for number, name in enumerate(self.class_names):
            if number not in seen and name not in seen:
                raise DataError(
                    self.where, f"class {name!r} has no rows", "add images, or name the classes in source.class_names"
                )

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        for name in self.names:
            file, uri = self._open(name), encode_name(name)
            self._check_columns(file.schema_arrow)
            row = 0
            for values in self._labels(name, file):
                yield [self._candidate(uri, row + i, value) for i, value in enumerate(values)]
                row += len(values)

    def _labels(self, name: str, file: pq.ParquetFile) -> Iterator[list[Any]]:
        """The label column, batch by batch; no batch holds rows of two row groups."""
        try:
            for group in range(file.num_row_groups):
                yield from rowgroups.values(file, group, self.label_column)
        except (OSError, pa.ArrowException) as error:
            first = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(self.where, f"{self.root / name} cannot be read ({first})", "fetch it again") from None

    def _candidate(self, uri: str, row: int, value: Any) -> Ref | Rejected:
        key = f"{uri}/{row:010d}"
        if value is None:
            return Rejected(key, "no_label", f"{self.label_column} is null")
        label = parse_label(int(value) if isinstance(value, bool) else value)
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


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _declared_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
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
    """The files, and the test files where they are given."""
    paths = {"": ("source.path", source.path)}
    if source.test_path is not None:
        paths["test"] = ("source.test_path", source.test_path)
    return {
        name: ParquetFiles(
            *find_files(path, ".parquet", where),
            where=where,
            image_column=source.image_column,
            label_column=source.label_column,
            class_names=source.class_names,
            complete=not name,
        )
        for name, (where, path) in paths.items()
    }
