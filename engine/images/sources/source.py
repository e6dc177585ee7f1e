"""What a source of real images is: it lists what it holds, and reads the bytes again from where they lie."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

import pyarrow as pa
from braceexpand import braceexpand

from engine import regular
from engine.errors import DataError
from engine.images.decode import BadImage
from engine.images.formats import EXTENSIONS
from engine.storage.abstract_store import is_system
from engine.storage.claim import is_output
from engine.storage.paths import WILD, RemotePath, check_url, split_wild
from engine.storage.urls import is_remote, normalise

Root = Path | RemotePath  # a local folder, or one of an object store
GROUP = 512  # images that one task inspects when the source has no larger unit of reading
IMAGE_EXTENSIONS = tuple(
    extension for extensions in EXTENSIONS.values() for extension in extensions
)  # most common first
SIDECARS = frozenset(("txt", "json", "jsonl", "xml", "csv", "tsv", "yaml", "yml", "caption", "md"))
GLOB = "*?["
MAX_BRACES = 100_000  # names that a pattern with braces may stand for


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

    @property
    def skipped(self) -> Mapping[str, int]:
        """What the last scan passed over, as no image by its name or kind, counted."""

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
    """Call `read(uri, positions)` once a file; when a file fails midway, what is left of it is yielded as
    unreadable."""
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


def open_file(path: Root) -> BinaryIO:
    """A file for reading; OSError for pipes, devices and folders, which are not waited for."""
    return path.open() if isinstance(path, RemotePath) else regular.opened(path)


def find_files(path: str, suffix: str, where: str) -> tuple[Root, list[str]]:
    """(root, names below it, sorted) of a file, of a folder's `*suffix` files, of a glob, or of a pattern with braces.

    Names that begin with a dot, folders of operating systems and outputs of mimeo are passed over. `path` may be a URL.
    Raises DataError where there is no such file, StorageError where a store refuses.
    """
    check_url(path)
    try:
        if "://" in path and is_remote(base := normalise(split_wild(path)[0])):
            root, names = _find_remote(RemotePath.of(base), split_wild(path)[1], suffix, where)
        else:
            root, names = _find_local(Path(path.removeprefix("file://")).expanduser(), suffix, where)
    except (OSError, RuntimeError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise DataError(where, f"{path[:200]} cannot be read ({what})", "check the path and its permissions") from None
    return root, names


def hidden(name: str) -> bool:
    """Whether a file or folder is passed over by its name."""
    return name.startswith(".") or is_system(name)


def sidecar(name: str) -> str | None:
    """The kind of a file that stands beside images and is none, such as ".txt", by its name; None for all others."""
    extension = name.rpartition(".")[2]
    if extension in IMAGE_EXTENSIONS or extension.lower() not in SIDECARS or extension == name:
        return None
    return f".{extension.lower()} file"


def _find_remote(given: RemotePath, pattern: str, suffix: str, where: str) -> tuple[Root, list[str]]:
    if not pattern and given.is_file():
        return given.parent, [given.last]
    if pattern:
        names = _remote_names(given, expand_braces(pattern, where), where)
    else:
        names = [entry.name for entry in given.files() if entry.name.endswith(suffix)]
    kept = sorted({name for name in names if not any(map(hidden, name.split("/")))})
    if not kept:
        what = f"{given}/{pattern} fits no file" if pattern else f"{given} does not exist or holds no {suffix} file"
        raise DataError(where, what, "check the address")
    return given, kept


def _remote_names(given: RemotePath, patterns: Sequence[str], where: str) -> list[str]:
    plain = [name for name in patterns if not any(c in name for c in GLOB)]
    there = {entry.name for entry in given.files()} if plain else set()
    absent = next((name for name in plain if name not in there), None)
    if absent is not None:
        raise DataError(where, f"{given}/{absent} does not exist", "check the pattern")
    return plain + [name for pattern in patterns if pattern not in there for name in given.glob(pattern)]


def _find_local(given: Path, suffix: str, where: str) -> tuple[Root, list[str]]:
    if given.is_file():
        return given.parent, [given.name]
    found: Iterable[Path]
    if given.is_dir():
        root, found = given, given.rglob(f"*{suffix}")
    elif any(c in str(given) for c in WILD):
        root = Path(*itertools.takewhile(lambda part: not any(c in part for c in WILD), given.absolute().parts))
        pattern = given.absolute().relative_to(root).as_posix()
        found = itertools.chain.from_iterable(_local(root, each, where) for each in expand_braces(pattern, where))
    else:
        what = "is no regular file" if os.path.lexists(given) else "does not exist"
        raise DataError(where, f"{given} {what}", "check the path")
    outputs = functools.cache(lambda folder: is_output(root / folder))
    names = sorted({path.relative_to(root).as_posix() for path in found if path.is_file()})
    kept = [
        name
        for name in names
        if not any(map(hidden, name.split("/"))) and not any(map(outputs, list(PurePosixPath(name).parents)[:-1]))
    ]
    if not kept:
        raise DataError(where, f"{given} holds no {suffix} file", "check the path")
    return root, kept


def _local(root: Path, pattern: str, where: str) -> Iterable[Path]:
    if any(c in pattern for c in GLOB):
        return root.glob(re.sub(r"(?:\*\*/)+", "**/", pattern))
    if not (root / pattern).is_file():
        raise DataError(where, f"{root / pattern} does not exist", "check the pattern")
    return (root / pattern,)


def expand_braces(pattern: str, where: str) -> list[str]:
    """The names that a pattern such as `set-{000000..000099}.tar` stands for; DataError for broken braces and too
    many."""
    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)
    too_many = DataError(where, f"{pattern[:200]} stands for over {MAX_BRACES:,} names", "name a folder")
    if any(abs(int(first) - int(last)) >= MAX_BRACES for first, last in ranges):
        raise too_many
    try:
        names = list(itertools.islice(braceexpand(pattern, escape=False), MAX_BRACES + 1))
    except (ValueError, RecursionError):
        raise DataError(where, f"{pattern[:200]} has braces that do not close", "check the pattern") from None
    if len(names) > MAX_BRACES:
        raise too_many
    return names
