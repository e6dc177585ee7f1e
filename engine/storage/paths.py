"""A path on an object store, for reading: whole files, byte ranges, seekable streams and listings, passing faults
retried."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from engine.errors import ConfigError
from engine.storage.abstract_store import Entry
from engine.storage.remote import RemoteStore, version_of
from engine.storage.urls import is_remote, normalise

BLOCK = 8 * 2**20  # read at once by a stream that goes through a file
WILD = "*?[{"


class RemotePath:
    """A file or folder below the URL of a store; any name will do, nothing is written, nothing is cached.

    Methods raise FileNotFoundError where the file is absent and StorageError, in one line, where the store refuses.
    Instances may be pickled and be keys of a dictionary.
    """

    def __init__(self, store: RemoteStore, name: str = "") -> None:
        self.store, self.name = store, name

    @classmethod
    def of(cls, url: str) -> RemotePath:
        """The path of a URL; ConfigError where it is not allowed."""
        return cls(RemoteStore(normalise(url)))

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.store, f"{self.name}/{name}" if self.name else name)

    def __str__(self) -> str:
        return f"{self.store.url}/{self.name}" if self.name else self.store.url

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def parent(self) -> RemotePath:
        """The folder above; a bucket is its own."""
        if self.name:
            return RemotePath(self.store, self.name.rpartition("/")[0])
        scheme, _, rest = self.store.url.partition("://")
        return RemotePath(RemoteStore(f"{scheme}://{rest.rpartition('/')[0] or rest}"))

    @property
    def last(self) -> str:
        """The last part of the path."""
        return str(self).rpartition("/")[2]

    def entry(self) -> Entry | None:
        """Name (empty), size and version of the file; None where there is no file of this name."""
        try:
            facts = self.store.retried(self.name, lambda: self.store.filesystem.info(self._path))
        except FileNotFoundError:
            return None
        return Entry("", int(facts["size"] or 0), version_of(facts)) if facts["type"] == "file" else None

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        return self.entry() is not None

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """The whole file, or its bytes from `start` to before `end`."""
        call = self.store.filesystem.cat_file
        data: bytes = self.store.retried(self.name, lambda: call(self._path, start=start, end=end))
        return data

    def open(self, block: int = BLOCK) -> BinaryIO:
        """A seekable stream that reads blocks ahead; with `block` 0 each read is one request for just these bytes."""
        found = self.entry()
        if found is None:
            raise FileNotFoundError(2, "no such file", str(self))
        raw = _Ranges(self, found.size)
        return cast("BinaryIO", io.BufferedReader(raw, block) if block else raw)

    def children(self) -> Iterator[tuple[str, bool]]:
        """(name, whether it is a folder) of what lies directly below, sorted; nothing where there is no such folder."""
        try:
            found = self.store.retried(self.name, lambda: self.store.filesystem.ls(self._path, detail=True))
        except FileNotFoundError:
            return
        names = {facts["name"].rstrip("/")[len(self._path) + 1 :]: facts["type"] == "directory" for facts in found}
        yield from sorted((name, folder) for name, folder in names.items() if name)

    def files(self) -> list[Entry]:
        """Every file at any depth below, sorted by name."""
        try:
            found = self.store.retried(self.name, lambda: self.store.filesystem.find(self._path, detail=True))
        except FileNotFoundError:
            return []
        start = len(self._path) + 1
        named = [(path[start:], facts) for path, facts in found.items() if facts["type"] == "file"]
        return sorted(
            (Entry(name, int(facts["size"] or 0), version_of(facts)) for name, facts in named if _is_name(name)),
            key=lambda entry: entry.name,
        )

    def glob(self, pattern: str) -> list[str]:
        """Names below that fit a pattern, sorted; `*` stays within a part, `**` does not."""
        path = f"{self._path}/{pattern}"
        try:
            found = self.store.retried(self.name, lambda: self.store.filesystem.glob(path, detail=True))
        except FileNotFoundError:
            return []
        start = len(self._path) + 1
        return sorted(path[start:] for path, facts in found.items() if facts["type"] == "file")

    @property
    def _path(self) -> str:
        return f"{self.store.root}/{self.name}" if self.name else self.store.root


class _Ranges(io.RawIOBase):
    """A file as requests for byte ranges."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._remote, self._size, self._at = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = self._remote.read(self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def place_of(path: str) -> Path | RemotePath:
    """Where a path or URL leads; ConfigError for URLs that are not allowed."""
    if "://" not in path:
        return Path(path).expanduser()
    url = normalise(path)
    return RemotePath.of(url) if is_remote(url) else Path(url)


def split_wild(url: str) -> tuple[str, str]:
    """A URL's part before its first part with `*`, `?`, `[` or `{`, and the pattern from there on; "" where it has
    none."""
    scheme, _, rest = url.partition("://")
    parts = rest.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in WILD)), len(parts))
    return f"{scheme}://{'/'.join(parts[:first])}", "/".join(parts[first:])


def check_url(path: str) -> None:
    """Refuse a URL of a recipe that no store has or that holds a key (ConfigError); local paths and patterns pass."""
    if "://" in path:
        base, pattern = split_wild(path)
        if not base.partition("://")[2]:
            raise ConfigError(path, "has a pattern in place of a bucket", "write the bucket's name out")
        normalise(base)
        if any(mark in pattern for mark in "#\\"):
            raise ConfigError(path, "has one of # \\ in it", "choose another name")


def _is_name(name: str) -> bool:
    return bool(name) and not name.endswith("/")
