"""A store in a local folder: write beside, fsync, hard-link to the final name, fsync the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from engine import regular
from engine.errors import StorageError
from engine.storage.abstract_store import TEMPORARY, Content, Entry, check_name, is_private, is_system, translated

STALE_S = 24 * 3600.0
AT_ONCE = 512  # pieces in one writev(2); every system takes so many
TRIES = 100  # at making a folder or a file in one that others remove
_TEMPORARY = re.compile(re.escape(TEMPORARY) + r"(?P<name>.+)-(?P<host>[A-Za-z0-9.]+)-(?P<pid>\d+)-(?P<ns>\d+)")


def host() -> str:
    """This machine's name, cut to the letters that temporary names use."""
    return re.sub(r"[^A-Za-z0-9.]", ".", socket.gethostname())[:40] or "localhost"


class LocalStore:
    """Files below one folder, published so that a crash at any step leaves them whole or absent."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = Path(url)

    def __repr__(self) -> str:
        return f"LocalStore({self.url!r})"

    def create(self, name: str, data: Content) -> bool:
        """Publish exclusively: fsync(file), link(2) to the final name, fsync(folder); see `Store.create`."""
        final = self._path(name)
        with translated(str(final)):
            for _ in range(3):
                with self._written(final, data) as temporary:
                    try:
                        won = _link(temporary, final)
                    except FileNotFoundError:
                        continue  # a sweep took the file in the instant before it was locked
                    _sync_folder(final.parent)
                if isinstance(data, Path):
                    data.unlink(missing_ok=True)
                return won
        raise StorageError(str(final), "temporary files vanish while they are written", "let nothing clean this folder")

    def replace(self, name: str, data: bytes) -> None:
        """Write a derived file atomically; see `Store.replace`."""
        final = self._path(name)
        with translated(str(final)), self._written(final, data) as temporary:
            temporary.replace(final)
            _sync_folder(final.parent)

    def read(self, name: str) -> bytes:
        """The whole file; see `Store.read`."""
        with self.open(name) as stream, translated(str(self.root / name)):
            return stream.read()

    def open(self, name: str) -> BinaryIO:
        """A seekable stream; pipes, devices and folders are refused, not waited for."""
        path = self._path(name)
        with translated(str(path)):
            try:
                return regular.opened(path)
            except NotADirectoryError:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(path)) from None
            except regular.NotRegularError:
                raise StorageError(str(path), "is not a regular file", "remove it") from None

    def exists(self, name: str) -> bool:
        """Whether the file is there; see `Store.exists`."""
        path = self._path(name)
        with translated(str(path)):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Every file below the root but temporary and system ones; links to folders are not followed."""
        start, _, _ = prefix.rpartition("/")
        yield from self._walk(self.root / check_name(start) if start else self.root, start, prefix)

    def remove(self, name: str) -> None:
        """Remove a file if it is there, and the folders that it leaves empty; see `Store.remove`."""
        path = self._path(name)
        with translated(str(path)), suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        with suppress(OSError):  # a folder that is not empty, or that a writer has just come to
            for _ in name.split("/")[1:]:
                path = path.parent
                path.rmdir()

    def local(self, name: str) -> Path | None:
        """The file's path; see `Store.local`."""
        return self._path(name)

    def sweep(self) -> int:
        """Remove temporary files whose writers are dead; returns how many."""
        swept = 0
        for folder, _, files in os.walk(self.root):
            for name in files:
                match = _TEMPORARY.fullmatch(name)
                path = Path(folder, name)
                if match and _abandoned(path, match["host"]):
                    with suppress(FileNotFoundError), translated(str(path)):
                        path.unlink()
                        swept += 1
        return swept

    def _path(self, name: str) -> Path:
        path = self.root / check_name(name)
        inside = os.path.dirname(name)  # noqa: PTH120 - '' for a name at the root
        if os.path.realpath(path.parent) != (
            os.path.join(os.path.realpath(self.root), inside).rstrip("/") or "/"  # noqa: PTH118
        ):
            raise StorageError(str(path), "leads out of the output through a symbolic link", "remove the link")
        return path

    def _walk(self, folder: Path, inside: str, prefix: str) -> Iterator[Entry]:
        with translated(str(folder)):
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if is_private(entry.name) or is_system(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if name.startswith(prefix) or prefix.startswith(f"{name}/"):
                    yield from self._walk(Path(entry.path), name, prefix)
            elif name.startswith(prefix):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    yield Entry(name, found.st_size, f"{found.st_ino}-{found.st_mtime_ns}-{found.st_ctime_ns}")

    @contextmanager
    def _written(self, final: Path, data: Content) -> Iterator[Path]:
        """The data as a durable temporary file beside `final`; gone when the block ends."""
        temporary, descriptor = _open_temporary(final)
        try:
            with suppress(OSError):  # some network file systems have no flock: `sweep` then goes by age
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if isinstance(data, Path):
                with data.open("rb") as source, os.fdopen(os.dup(descriptor), "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 22)
            else:
                _write(descriptor, data if isinstance(data, tuple) else (data,))
            os.fsync(descriptor)
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
            os.close(descriptor)


def _write(descriptor: int, pieces: tuple[bytes, ...]) -> None:
    """Write all pieces, many in a system call; what a call has not taken is written piece by piece."""
    for first in range(0, len(pieces), AT_ONCE):
        group = pieces[first : first + AT_ONCE]
        taken = os.writev(descriptor, group) if len(group) > 1 else 0
        for piece in group:
            view = memoryview(piece)[taken:]
            taken = max(0, taken - len(piece))
            while view:
                view = view[os.write(descriptor, view) :]


def _open_temporary(final: Path) -> tuple[Path, int]:
    for _ in range(TRIES):  # `remove` may take the empty folder between its making and the file's
        make_folder(final.parent)
        temporary = final.parent / f"{TEMPORARY}{final.name}-{host()}-{os.getpid()}-{time.time_ns()}"
        with suppress(FileExistsError, FileNotFoundError):
            return temporary, os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
    raise FileNotFoundError(errno.ENOENT, "takes no files", str(final.parent))


def _link(temporary: Path, final: Path) -> bool:
    try:
        os.link(temporary, final, follow_symlinks=False)
        return True
    except FileExistsError:  # NFS may report our own link as taken when its first reply was lost
        return os.path.samestat(temporary.stat(), final.lstat())


def _abandoned(path: Path, writer_host: str) -> bool:
    """Writers hold flock on their temporary file; on another host's, or where flock fails, only age tells."""
    try:
        if time.time() - path.stat().st_mtime > STALE_S:
            return True
        if writer_host != host():
            return False
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make the folder and its parents, each entry durable; another process may remove them again while they are
    empty."""
    for last in reversed(range(TRIES)):
        if folder.is_dir():
            return
        try:
            folder.mkdir()
            _sync_folder(folder.parent)
        except FileExistsError:
            if os.path.lexists(folder) and not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder)) from None
        except FileNotFoundError:
            if not last:
                raise
            make_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that cannot sync folders say EINVAL
            raise
    finally:
        os.close(descriptor)
