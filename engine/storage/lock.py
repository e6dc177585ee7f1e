"""One run at a time on an output: flock on a local folder, a lease with a heartbeat on remote stores."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.errors import StorageError
from engine.storage.abstract_store import PRIVATE, Store, storage_error
from engine.storage.holder import Holder
from engine.storage.lease import lease, newest
from engine.storage.local import LocalStore, make_folder

FILE = f"{PRIVATE}.lock"
_PATIENCE_S = 1.0
_held: set[int] = set()


@contextmanager
def hold(store: Store, what: str) -> Iterator[None]:
    """Hold an output for the block; `what` (such as "mimeo generate") is what the second comer reads.

    Raises OutputInUseError, naming host, process and since when, while a live process holds it. The kernel releases a
    local lock when its process dies; a remote lease is taken over at once where its process is seen to be dead, else
    after
    `lease.LEASE_S` seconds without a heartbeat.
    """
    with _local(store, what) if isinstance(store, LocalStore) else lease(store, what):
        yield


def holder(store: Store) -> Holder | None:
    """Who holds the output now, None where nobody does (a remote lease counts until it is released or its process
    died)."""
    if isinstance(store, LocalStore):
        return _peek(store.root / FILE)
    found = newest(store)
    return None if found is None or found[1].released or found[1].is_dead() else found[1]


@contextmanager
def _local(store: LocalStore, what: str) -> Iterator[None]:
    path = store.root / FILE
    descriptor = _acquire(path)
    _held.add(descriptor)
    try:
        me = Holder.here(what).text()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, me, 0)
        yield
    finally:
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                path.unlink()
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Open and lock the file; a file that its last holder has just unlinked is opened anew."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            make_folder(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and time.monotonic() < deadline:
                continue  # the folder was removed in between
            raise storage_error(error, str(path.parent)) from error
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            os.close(descriptor)
            kind = "has a second name (a hard link)" if stat.S_ISREG(facts.st_mode) else "is not a regular file"
            raise StorageError(str(path), f"{kind}, so it is no lock of mimeo", "remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BlockingIOError:
            other = Holder.read(os.pread(descriptor, 1 << 16, 0))
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise (other or Holder("unknown", 0, time.time(), "another process")).refusal(
                    str(path.parent)
                ) from None
        except OSError as error:
            os.close(descriptor)
            raise storage_error(error, str(path)) from error
        os.close(descriptor)
        time.sleep(0.05)


def _peek(path: Path) -> Holder | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        with suppress(OSError):
            return Holder.read(os.pread(descriptor, 1 << 16, 0))
        return None
    finally:
        os.close(descriptor)


def _forget() -> None:
    """A forked child gives up its copies, so that the lock ends with its holder and not with the last child."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
