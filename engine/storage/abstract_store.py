"""What every store offers, which names it takes, and how a failed system call becomes one clear line."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from engine.errors import StorageError

TEMPORARY = ".tmp-"
PRIVATE = ".mimeo"
SYSTEM = frozenset(  # what operating systems and network disks leave in folders, in lower case
    {".ds_store", ".localized", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
    | {"__macosx", "lost+found", "@eadir", "#recycle", "#snapshot"}
)
Content = bytes | tuple[bytes, ...] | Path  # of a new file: its bytes, in one piece or several, or a file that has them
_PART = re.compile(r"[^\x00-\x1f\x7f/\\]{1,150}")
_RESUME = "make room, then run the same command again: it goes on where it stopped"
_WHAT = {
    errno.ENOSPC: ("no space left", _RESUME),
    errno.EDQUOT: ("the quota is used up", _RESUME),
    errno.EFBIG: ("the file is larger than the limit", "raise the limit (ulimit -f) or lower generate.shard_size"),
    errno.EACCES: ("permission denied", "choose a folder that you may write, or change its permissions"),
    errno.EPERM: (
        "operation not permitted",
        "choose a file system that allows hard links and a folder that you may write",
    ),
    errno.EOPNOTSUPP: ("operation not supported", "choose a file system that allows hard links"),
    errno.EROFS: ("the file system is read-only", "choose another folder"),
    errno.ENOTDIR: ("a file lies where a folder is needed", "choose another folder"),
    errno.EISDIR: ("a folder lies where a file is needed", "choose another folder"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter one"),
    errno.ELOOP: ("the path is a loop of symbolic links", "choose another folder"),
    errno.EIO: ("the device reports an input/output error", "check the disk"),
}


@dataclass(frozen=True)
class Entry:
    """One file of a store: its name relative to the root, its size in bytes.

    `version` changes with the content: ETag, generation or time, as the store gives it; inode and times of a local
    file.
    """

    name: str
    size: int
    version: str = field(default="", compare=False)


class Store(Protocol):
    """A folder of files, local or remote; names are '/'-separated and relative to its root.

    Every method raises StorageError (exit 4) where the place refuses; `read`, `open` and `fetch` raise
    FileNotFoundError where the file is absent. Stores may be pickled and are cheap to send to workers.
    """

    url: str

    def create(self, name: str, data: Content) -> bool:
        """Publish a file in one exclusive step; readers see it whole or not at all.

        True: this call has published it. False: another writer was first. Remote stores also say True where another
        writer published equal bytes: that cannot be told from a lost reply. A `Path` is a local file that is consumed;
        a tuple holds the pieces of the file in order, which a local store writes without joining them.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file, over an older one if there is one, in one atomic step."""

    def read(self, name: str) -> bytes:
        """The whole file."""

    def open(self, name: str) -> BinaryIO:
        """A seekable stream of the file, for reading."""

    def exists(self, name: str) -> bool:
        """Whether the file is there now (no cache)."""

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every file whose name begins with `prefix`, in name order within a folder; never temporary, lock or system
        files."""

    def remove(self, name: str) -> None:
        """Remove a file; one that is absent already is no error."""

    def local(self, name: str) -> Path | None:
        """The path of a name where the store is a local folder, else None."""


def check_name(name: str) -> str:
    """Return the name if it is a plain relative one; raises StorageError for `..`, empty parts, control characters."""
    parts = name.split("/")
    plain = all(_PART.fullmatch(part) and part not in (".", "..") and len(part.encode()) <= 150 for part in parts)
    if not plain or len(name.encode()) > 700:
        raise StorageError(
            repr(name), "is not a file name inside an output", "names are relative, without '..' and short"
        )
    return name


def is_private(name: str) -> bool:
    """Whether a name belongs to the engine's own protocol (temporary and lock files) and is never listed."""
    return any(part.startswith((TEMPORARY, PRIVATE)) for part in name.split("/"))


def is_system(name: str) -> bool:
    """Whether an operating system, not a person or a program, puts files or folders of this name beside others'."""
    return name.startswith("._") or name.lower() in SYSTEM


def storage_error(error: OSError, where: str) -> StorageError:
    """Turn a failed system call into one line that names the path and, where it matters, the free space."""
    what, fix = _WHAT.get(error.errno or 0, (error.strerror or str(error) or type(error).__name__, "check the path"))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = _free_space(where)
        what += f" ({free / 2**20:,.1f} MiB free)" if free is not None else ""
    return StorageError(where, what, fix)


def is_known(error: OSError) -> bool:
    """Whether a failed system call is a matter of the place (rights, room, limits, names), not of the program."""
    return error.errno in _WHAT


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Turn any OSError of the block but FileNotFoundError into a StorageError about `where`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, where) from error


def _free_space(where: str) -> int | None:
    for folder in (Path(where), *Path(where).parents):
        if os.path.lexists(folder):
            try:
                return shutil.disk_usage(folder).free
            except OSError:
                return None
    return None
