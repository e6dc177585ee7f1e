"""What a source of real images is: it lists what it holds, and reads the bytes again from where they lie."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

import pyarrow as pa

from engine.errors import DataError
from engine.images.decode import BadImage
from engine.storage.paths import RemotePath, check_url, split_wild
from engine.storage.urls import is_remote, normalise

Root = Path | RemotePath  # a local folder, or one of an object store
GROUP = 512  # images that one task inspects when the source has no larger unit of reading


class Place(NamedTuple):
    """Where the bytes of an image lie: a file, a byte range of a tar, or a row of a Parquet file.

    `uri` is relative to the source and percent-encoded; `offset` and `row` are -1 where they do not apply.
    """

    uri: str
    offset: int = -1
    size: int = -1
    row: int = -1


@dataclass(frozen=True, slots=True)
class Ref:
    """A candidate image: `key` is unique in its source, `label` a class number or name as the source gives it."""

    key: str
    label: int | str
    place: Place


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry of the source that is no image, known without decoding it."""

    key: str
    reason: str
    detail: str
    label: int | str | None = None


class ImageSource(Protocol):
    """One set of real images.

    `class_names` are the names that the source declares for labels 0, 1, ...; None when labels are names in themselves.
    Instances are picklable and hold no open file.
    """

    class_names: tuple[str, ...] | None

    def check(self) -> None:
        """Find structural faults in well under a second; raises DataError or ConfigError."""

    def size(self) -> int | None:
        """How many entries there are, once `check` has passed; None where only a scan can tell."""

    def scan(self) -> Iterator[Sequence[Ref | Rejected]]:
        """Stream what is there, in groups that are cheapest to read together; opens no image."""

    def read(self, places: Sequence[Place]) -> Iterator[tuple[int, bytes | BadImage]]:
        """Yield (position in `places`, bytes or why not) in the order that reads each file or row group once."""


def read_by_file(
    places: Sequence[Place], read: Callable[[str, list[int]], Iterator[tuple[int, bytes | BadImage]]]
) -> Iterator[tuple[int, bytes | BadImage]]:
    """Call `read(uri, positions)` once a file; when a file fails midway, what is left of it is yielded as unreadable."""
    by_file: dict[str, list[int]] = {}
    for position, place in enumerate(places):
        by_file.setdefault(place.uri, []).append(position)
    for uri, positions in by_file.items():
        left = set(positions)
        try:
            for position, data in read(uri, positions):
                left.discard(position)
                yield position, data
        except (OSError, pa.ArrowException, DataError) as error:
            bad = BadImage("unreadable", " ".join(str(error).split())[:200])
            yield from ((position, bad) for position in sorted(left))


def encode_name(name: str | bytes) -> str:
    """A file name as printable UTF-8 text: `%`, `:` and whatever is not printable become %XX bytes; injective."""
    text = os.fsdecode(name)
    if text.isprintable() and "%" not in text and ":" not in text:
        return text
    return "".join(
        c if c.isprintable() and c not in "%:" else "".join(f"%{b:02X}" for b in os.fsencode(c)) for c in text
    )


def decode_name(text: str) -> str:
    """The file name that `encode_name` was given."""
    return os.fsdecode(unquote_to_bytes(text))


def find_files(path: str, suffix: str, where: str) -> tuple[Root, list[str]]:
    """(root, names below it, sorted) of a file, of a folder's `*suffix` files, or of a glob; DataError when there is none.

    `path` may be a URL; StorageError where its store refuses.
    """
    check_url(path)
    if "://" in path and is_remote(base := normalise(split_wild(path)[0])):
        return _find_remote(RemotePath.of(base), split_wild(path)[1], suffix, where)
    given = Path(path.removeprefix("file://")).expanduser()
    if given.is_file():
        return given.parent, [given.name]
    if given.is_dir():
        names = sorted(p.relative_to(given).as_posix() for p in given.rglob(f"*{suffix}") if p.is_file())
        root = given
    elif any(c in path for c in "*?["):
        root, pattern = _split_glob(given)
        names = sorted(p.relative_to(root).as_posix() for p in root.glob(pattern) if p.is_file())
    else:
        raise DataError(where, f"{given} does not exist", "check the path")
    if not names:
        raise DataError(where, f"{given} holds no {suffix} file", "check the path")
    return root, names


def _find_remote(given: RemotePath, pattern: str, suffix: str, where: str) -> tuple[Root, list[str]]:
    if not pattern and given.is_file():
        return given.parent, [given.last]
    names = given.glob(pattern) if pattern else [e.name for e in given.files() if e.name.endswith(suffix)]
    if not names:
        what = f"{given}/{pattern} fits no file" if pattern else f"{given} does not exist or holds no {suffix} file"
        raise DataError(where, what, "check the address")
    return given, names


def _split_glob(path: Path) -> tuple[Path, str]:
    parts = path.absolute().parts
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in "*?["))
    return Path(*parts[:fixed]), "/".join(parts[fixed:])
