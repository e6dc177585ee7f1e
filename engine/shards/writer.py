"""Builds a shard whole, in memory: equal samples give equal bytes, wherever and in whatever order they were added."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from engine.storage.tar import BLOCK, QUARANTINE_KEYWORD, RECORD, global_header, header, padding

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
EXTENSION = re.compile(r"[a-z0-9]{1,10}")
MAX_REASON = 300
PIECE = 1 << 20  # small members are joined up to this size; larger ones stay as they are, uncopied
LARGE = 1 << 15


@dataclass(frozen=True)
class Quarantined:
    """A planned sample that was given up: its index, class label, why, and after how many attempts."""

    index: int
    label: int
    reason: str
    attempts: int

    def is_valid(self) -> bool:
        """Whether the fields have their types, as data read back may not."""
        numbers = (self.index, self.label, self.attempts)
        return all(type(number) is int for number in numbers) and isinstance(self.reason, str)

    def to_json(self) -> dict[str, int | str]:
        """The entry as plain data."""
        return {"index": self.index, "label": self.label, "reason": self.reason, "attempts": self.attempts}


@dataclass(frozen=True)
class ShardBytes:
    """A finished shard: the tar in pieces, how many samples are in it, and its SHA-256, which a thread computes
    meanwhile."""

    pieces: tuple[bytes, ...]
    count: int
    hashed: Future[str]

    @property
    def data(self) -> bytes:
        """The whole tar."""
        return b"".join(self.pieces)

    @property
    def size(self) -> int:
        """Bytes of the tar."""
        return sum(map(len, self.pieces))

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the tar; waits for it."""
        return self.hashed.result()


class ShardBuilder:
    """Collects the samples of one shard and the entries that were given up.

    Members are plain USTAR files of mode 0644, owner 0 and time 0, sorted by key, then extension. Quarantined entries,
    if any, come first in a PAX global header, which tar readers pass over: a tar says by itself what became of its
    samples. As some readers refuse such a header with nothing after it, an empty folder follows it where no sample is
    left.
    """

    def __init__(self) -> None:
        self._samples: dict[str, dict[str, bytes]] = {}
        self._quarantined: dict[int, Quarantined] = {}

    def add(self, key: str, files: Mapping[str, bytes]) -> None:
        """Add a sample: its files by extension, such as `{"png": ..., "cls": b"3", "json": ...}`."""
        if not KEY.fullmatch(key) or not files or not all(map(_is_extension, files)):
            raise ValueError(f"sample {key!r} with files {sorted(files)} does not fit a shard")
        if key in self._samples:
            raise ValueError(f"sample {key!r} was added twice")
        self._samples[key] = dict(files)

    def quarantine(self, entry: Quarantined) -> None:
        """Add a sample that was given up; its reason is cut to 300 characters."""
        if entry.index in self._quarantined:
            raise ValueError(f"sample {entry.index} was quarantined twice")
        self._quarantined[entry.index] = Quarantined(
            entry.index, entry.label, entry.reason[:MAX_REASON], entry.attempts
        )

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """The entries that were given up, by index."""
        return tuple(entry for _, entry in sorted(self._quarantined.items()))

    def finish(self) -> ShardBytes:
        """The whole tar, ended and padded as POSIX asks (a multiple of 10,240 bytes)."""
        pieces = list(_gathered(self._parts()))
        size = sum(map(len, pieces)) + 2 * BLOCK
        pieces.append(bytes(2 * BLOCK) + padding(size, RECORD))
        hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")  # hashing and writing both leave the GIL to others
        hashed = hasher.submit(_sha256, pieces)
        hasher.shutdown(wait=False)
        return ShardBytes(tuple(pieces), len(self._samples), hashed)

    def _parts(self) -> Iterator[bytes]:
        if self._quarantined:
            entries = [entry.to_json() for entry in self.quarantined]
            yield global_header(QUARANTINE_KEYWORD, json.dumps(entries, sort_keys=True, separators=(",", ":")))
            if not self._samples:
                yield header(b"quarantined/", 0, kind=b"5", mode=0o755)
        for key, files in sorted(self._samples.items()):
            for extension, content in sorted(files.items()):
                yield header(f"{key}.{extension}".encode(), len(content))
                yield content
                yield padding(len(content))


@functools.lru_cache(maxsize=64)
def _is_extension(text: str) -> bool:
    return EXTENSION.fullmatch(text) is not None


def _gathered(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces: small parts are joined, large ones are not copied."""
    small: list[bytes] = []
    size = 0
    for part in parts:
        large = len(part) >= LARGE
        if small and (large or size >= PIECE):
            yield b"".join(small)
            small, size = [], 0
        if large:
            yield part
        else:
            small.append(part)
            size += len(part)
    if small:
        yield b"".join(small)


def _sha256(pieces: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()
