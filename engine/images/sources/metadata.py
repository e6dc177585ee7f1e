"""Labels in a file beside the images: metadata.csv, metadata.jsonl or metadata.parquet, as Hugging Face's imagefolder
has them."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from engine.errors import ConfigError, DataError
from engine.images.decode import BadImage
from engine.images.labels import near_match, parse_label
from engine.images.sources.parquet import declared_names
from engine.images.sources.source import Root
from engine.regular import Json

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE, LABEL = "file_name", "label"
MAX_LINE = 1 << 20  # bytes
FAULTS = (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException)

Label = int | str | BadImage


class Metadata:
    """A metadata file of a folder; holds no row.

    `column` holds the labels: the one asked for, else "label" where there is one, else None. `class_names` are those
    that a Parquet file declares for its numbers.
    """

    def __init__(self, path: Root, where: str, column: str | None) -> None:
        self.path, self.where = path, where
        try:
            self.columns, self.class_names = self._header(column or LABEL)
        except FAULTS as error:
            raise self._broken(error) from None
        if FILE not in self.columns:
            raise DataError(where, f"{path} has no column {FILE}", f"columns: {', '.join(self.columns)[:200]}")
        if column is not None and column not in self.columns:
            near = near_match(column, self.columns)
            fix = f"did you mean {near}?" if near else f"columns: {', '.join(self.columns)[:200]}"
            raise ConfigError("source.label_column", f"{path} has no column {column!r}", fix)
        self.column = column or (LABEL if LABEL in self.columns else None)

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.path.name if isinstance(self.path, Path) else self.path.last

    def labels(self, numbers: bool) -> dict[str, Label]:
        """The label of each file, by its path below the folder; with `numbers` text of digits is a number.

        Raises DataError for a broken file, and where a file has two labels.
        """
        assert self.column is not None
        found: dict[str, Label] = {}
        try:
            for file, value in self._rows(self.column):
                if not isinstance(file, str) or not file.strip():
                    raise ValueError(f"a row has no {FILE}")
                key = posixpath.normpath(file.strip().replace("\\", "/"))
                label, known = self._label(value, numbers), found.get(key)
                if known is None or isinstance(known, BadImage):
                    found[key] = label
                elif not isinstance(label, BadImage) and label != known:
                    raise DataError(self.where, f"{self.path} gives {key} two labels", f"keep {known!r} or {label!r}")
        except FAULTS as error:
            raise self._broken(error) from None
        return found

    def _label(self, value: Any, numbers: bool) -> Label:
        if value is None or (isinstance(value, str) and not value.strip()):
            return BadImage("no_label", f"{self.name} gives no label")
        if numbers and isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        label = parse_label(value)
        if isinstance(label, int) and self.class_names is not None and label < len(self.class_names):
            return self.class_names[label]
        return label

    def _header(self, column: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        with _opened(self.path) as file:
            if self.name.endswith(".parquet"):
                schema = pq.ParquetFile(file).schema_arrow
                return tuple(schema.names), declared_names(schema, column)
            if self.name.endswith(".csv"):
                return tuple(csv.DictReader(_text(file)).fieldnames or ()), None
            return tuple(next(_objects(file), {})), None

    def _rows(self, column: str) -> Iterator[tuple[Any, Any]]:
        with _opened(self.path) as file:
            if self.name.endswith(".parquet"):
                for batch in pq.ParquetFile(file).iter_batches(columns=[FILE, column]):
                    yield from zip(batch[FILE].to_pylist(), batch[column].to_pylist(), strict=True)
            else:
                rows = csv.DictReader(_text(file)) if self.name.endswith(".csv") else _objects(file)
                for row in rows:
                    yield row.get(FILE), row.get(column)

    def _broken(self, error: BaseException) -> DataError:
        first = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        return DataError(self.where, f"{self.path} is no readable metadata file ({first})", "check the file")


def find(root: Root, names: Sequence[str], where: str, column: str | None) -> Metadata | None:
    """The metadata file among the files of a folder; DataError where there are two, ConfigError where a column is asked
    of none."""
    found = [name for name in NAMES if name in names]
    if len(found) > 1:
        raise DataError(where, f"{root} holds {' and '.join(found)}", "keep one of them")
    if not found and column is not None:
        raise ConfigError("source.label_column", f"{root} holds none of {', '.join(NAMES)}", "leave it out")
    return Metadata(root / found[0], where, column) if found else None


def _opened(path: Root) -> BinaryIO:
    return path.open("rb") if isinstance(path, Path) else path.open()


def _text(file: BinaryIO) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, "utf-8-sig", newline="")


def _objects(file: BinaryIO) -> Iterator[Json]:
    while line := file.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise ValueError(f"a line of over {MAX_LINE:,} bytes")
        if line.strip():
            row = json.loads(line.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError("a line is no object")
            yield row
