"""Which bytes a file holds: hashed once a process and once a node, and compared with those that a run began with when
they are loaded."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from engine import regular
from engine.errors import StorageError
from engine.storage import notes
from engine.storage.abstract_store import translated

SETTLED_S = 2.0  # a younger file may change again within one tick of its file system's clock
_FIX = "put the original back and run the same command again, or start a new output"


@dataclass(frozen=True)
class Version:
    """A state of a file. Whatever changes its bytes changes `ctime_ns`, which no call can set."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def settled(self) -> bool:
        """Whether another change would give another version."""
        return time.time() - self.ctime_ns / 1e9 > SETTLED_S


_KNOWN: dict[Version, str] = {}


def version(path: Path) -> Version:
    """The state of a file now; StorageError where there is no regular file that can be read."""
    with _opened(path) as file:
        return _version(path, file)


def sha256(path: Path, *, noted: bool = False) -> str:
    """The SHA-256 (hex) of a file's bytes; StorageError where it cannot be read or changes meanwhile.

    Kept for the process while the file's version stays; with `noted` also taken from what this user's other processes
    on this node have found, and looked for by one of them at a time.
    """
    now = version(path)
    if now in _KNOWN:
        return _KNOWN[now]
    if not now.settled:
        return _hash(path, now)
    key = {**asdict(now), "node": os.uname().nodename}
    _KNOWN[now] = str(notes.found("sha256", key, lambda: _hash(path, now), anew=not noted))
    return _KNOWN[now]


@contextmanager
def unchanged(files: Mapping[Path, str]) -> Iterator[None]:
    """Around the loading of files: their bytes have these SHA-256s, and they are the same files still once they are
    loaded.

    What is loaded must lie in memory of the process's own when the block ends (`owned`). Raises StorageError, one line,
    naming the first file that does not; also in place of what a loader makes of one.
    """
    for path, digest in files.items():
        if sha256(path, noted=True) != digest:
            raise StorageError(str(path), "is not the file that the run began with", _FIX)
    before = [version(path) for path in files]

    def compare() -> None:
        for path, digest, then in zip(files, files.values(), before, strict=True):
            if version(path) != then or sha256(path, noted=True) != digest:
                raise StorageError(str(path), "was changed while it was loaded", _FIX)

    try:
        yield
    except Exception:
        compare()
        raise
    compare()


def owned(model: Any) -> Any:
    """A torch module, its numbers copied into memory of the process's own.

    On the CPU loaders map the file, and whoever writes into it changes the model in use.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    return model


def _hash(path: Path, expected: Version) -> str:
    with _opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if _version(path, file) != expected:
            raise StorageError(str(path), "was changed while it was read", "wait until it is written, and run again")
    return digest


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """The file for reading, as it is once others' writes are seen (network file systems look again on opening)."""
    with translated(str(path)):
        try:
            file = regular.opened(path)
        except FileNotFoundError:
            raise StorageError(str(path), "is missing", _FIX) from None
        except regular.NotRegularError as error:
            raise StorageError(str(path), f"is {error.strerror}", _FIX) from None
        with file:
            yield file


def _version(path: Path, file: BufferedReader) -> Version:
    found = os.fstat(file.fileno())
    return Version(str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
