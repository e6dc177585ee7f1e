"""Copies of remote files and folders on this node's disk: made once, by one process, checked, and never seen half
done."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import StorageError
from engine.storage.abstract_store import Entry, translated
from engine.storage.parallel import mapped
from engine.storage.paths import RemotePath

VARIABLE = "MIMEO_CACHE"
DOWNLOADS = 4  # files at once
FILES, FACTS, PART, LOCK = "files", "entry.json", ".part", ".lock"
_CHUNK = 8 * 2**20
Select = Callable[[Sequence[str]], Sequence[str]]


def folder() -> Path:
    """Where the copies lie: $MIMEO_CACHE, else ~/.cache/mimeo."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "mimeo"


def fetch(url: str, *, digests: Mapping[str, str] | None = None, select: Select | None = None) -> Path:
    """This node's copy of a file or of a folder of an object store; the first process downloads, the others wait for
    it.

    The store is asked each time whether the content is still that of the copy: what has changed is fetched anew, beside
    the old copy. `select` names the files of a folder that are wanted. Sizes are always checked, and SHA-256 where
    `digests` gives it by name (for a file its last name). The copies must not be changed. Raises StorageError in one
    line: absent, no permission, no room (known before the download), another content than `digests`.
    """
    source = RemotePath.of(url)
    base, entries = _listing(source, select)
    root = folder()
    key = _key(str(source), entries)
    with translated(str(root)):
        root.mkdir(parents=True, exist_ok=True)
    facts = _facts(root / key)
    if facts is None:
        with translated(str(root)), _locked(root / f"{key}{LOCK}"):
            facts = _facts(root / key)
            if facts is None:
                _sweep(root, key)
                _check_room(str(source), sum(entry.size for entry in entries), root)
                with _part(root, key) as part:
                    facts = _download(str(source), base, entries, part)
                    if _key(str(source), _listing(source, select)[1]) != key:
                        raise StorageError(str(source), "changed while it was downloaded", "run the same command again")
                    part.rename(root / key)
    for name, digest in (digests or {}).items():
        if facts.get(name) != digest:
            where = f"{base}/{name}"
            what = "is not there" if name not in facts else "is not the file that the run began with"
            raise StorageError(where, what, "put the original back, or start a new output")
    copy = root / key / FILES
    return copy if base == source else copy / source.last


def check(copy: Path, digests: Mapping[str, str]) -> None:
    """Refuse a folder's copy of which files are not as they were downloaded (StorageError); `digests`: SHA-256 by name
    now."""
    facts = _facts(copy.parent) or {}
    for name, digest in digests.items():
        if facts.get(name) != digest:
            raise StorageError(
                str(copy / name), "is not what was downloaded", f"remove {copy.parent}: it is fetched again"
            )


def _listing(source: RemotePath, select: Select | None) -> tuple[RemotePath, list[Entry]]:
    """The folder that the names are relative to, and the wanted files."""
    single = source.entry()
    if single is not None:
        return source.parent, [Entry(source.last, single.size, single.version)]
    entries = source.files()
    if not entries:
        raise StorageError(str(source), "does not exist or holds no files", "check the address")
    wanted = set(select([entry.name for entry in entries])) if select else {entry.name for entry in entries}
    chosen = [entry for entry in entries if entry.name in wanted]
    if not chosen:
        raise StorageError(str(source), "holds none of the files that are needed", "check the address")
    for entry in chosen:
        if any(part in ("", ".", "..") for part in entry.name.split("/")):
            raise StorageError(f"{source}/{entry.name}", "is not a plain name", "rename it")
    return source, chosen


def _key(url: str, entries: Sequence[Entry]) -> str:
    """A name that another content or another address never has."""
    listing = [[entry.name, entry.size, entry.version] for entry in entries]
    digest = hashlib.sha256(json.dumps([url, listing]).encode()).hexdigest()[:24]
    return f"{re.sub(r'[^A-Za-z0-9._]', '-', url.rpartition('/')[2])[:40].lstrip('.')}-{digest}"


def _facts(entry: Path) -> dict[str, str] | None:
    """SHA-256 of each file of a finished copy; None where there is none."""
    try:
        found: dict[str, str] = json.loads((entry / FACTS).read_bytes())["files"]
        return found
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        return None


@contextmanager
def _part(root: Path, key: str) -> Iterator[Path]:
    """A folder beside the final name, gone when the block ends."""
    part = root / f"{key}.{time.time_ns()}{PART}"
    try:
        (part / FILES).mkdir(parents=True)
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(url: str, base: RemotePath, entries: Sequence[Entry], part: Path) -> dict[str, str]:
    """Fetch the files and write the copy's record; SHA-256 by name."""
    digests = dict(mapped(lambda entry: (entry.name, _one(base, entry, part / FILES)), entries, DOWNLOADS))
    (part / FACTS).write_text(json.dumps({"url": url, "files": digests}, indent=1, sort_keys=True))
    _sync(part)
    return digests


def _check_room(url: str, size: int, root: Path) -> None:
    free = shutil.disk_usage(root).free
    if size > free:
        what = f"needs {size / 2**20:,.1f} MiB, {root} has {free / 2**20:,.1f} MiB free"
        raise StorageError(url, what, f"make room, or set {VARIABLE} to a folder on another disk")


def _one(base: RemotePath, entry: Entry, target: Path) -> str:
    """Download a file and compare its size; its SHA-256."""
    path, remote = target / entry.name, base / entry.name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("wb") as file:
            while size < entry.size:
                data = remote.read(size, min(size + _CHUNK, entry.size))
                if not data:
                    break
                file.write(data)
                digest.update(data)
                size += len(data)
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        raise StorageError(str(remote), "vanished while it was downloaded", "run the same command again") from None
    if size != entry.size:
        raise StorageError(str(remote), f"gave {size:,} of {entry.size:,} bytes", "run the same command again")
    return digest.hexdigest()


def _sync(part: Path) -> None:
    for place in (part / FACTS, part):
        descriptor = os.open(place, os.O_RDONLY)
        with suppress(OSError):  # file systems that cannot sync folders
            os.fsync(descriptor)
        os.close(descriptor)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock that ends with its process; gives whether it was had."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            had = True
        except BlockingIOError:
            had = False
        yield had
    finally:
        os.close(descriptor)


def _sweep(root: Path, own: str) -> None:
    """Remove what downloads whose process has died left behind: their locks are free."""
    for part in root.glob(f"*{PART}"):
        key = part.name.removesuffix(PART).rpartition(".")[0]
        if key == own:  # whose lock we hold
            shutil.rmtree(part, ignore_errors=True)
            continue
        with _locked(root / f"{key}{LOCK}", wait=False) as had:
            if had:
                shutil.rmtree(part, ignore_errors=True)
