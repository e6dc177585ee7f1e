"""Leases for stores without locks: numbered objects with a heartbeat; number n+1 is created exclusively, so one
wins."""

from __future__ import annotations

import _thread
import ctypes
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from engine.errors import MimeoError, OutputInUseError, StorageError
from engine.storage.abstract_store import PRIVATE, Store
from engine.storage.holder import Holder

FOLDER = f"{PRIVATE}.lease"
BEAT_S = 4.0
LEASE_S = 30.0


@contextmanager
def lease(store: Store, what: str) -> Iterator[None]:
    """Hold a remote output for the block; see `lock.hold`. When another run takes over, the block is interrupted.

    In whatever thread it runs: a trial's is not the main one of its process, which belongs to Ray there.
    """
    me = Holder.here(what)
    number = _take(store, me)
    stop, lost = threading.Event(), threading.Event()
    work = (store, number, me, stop, lost, threading.current_thread())
    heart = threading.Thread(target=_beat, args=work, name="mimeo-lease", daemon=True)
    heart.start()
    try:
        try:
            with _interruptible(lost):
                yield
        finally:
            stop.set()
            heart.join(timeout=10)
    except KeyboardInterrupt:
        if lost.is_set():
            raise _taken(store) from None
        raise
    finally:
        if not lost.is_set():
            with suppress(MimeoError):
                store.replace(_lease_name(number), replace(me, released=True).text())
    if lost.is_set():
        raise _taken(store)


@contextmanager
def _interruptible(lost: threading.Event) -> Iterator[None]:
    """Where SIGINT is ignored, as in what a script runs in the background, let the loss of the lease through, and only
    that."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return

    def interrupt(*_: object) -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _take(store: Store, me: Holder) -> int:
    """Create the next lease when the newest is released, dead or silent; returns its number."""
    while True:
        found = newest(store)
        number = found[0] if found else 0
        if found and not found[1].released and not found[1].is_dead() and not _silent(store, *found):
            raise found[1].refusal(store.url)
        if store.create(_lease_name(number + 1), me.text()):
            for entry in list(store.list(f"{FOLDER}/")):
                if entry.name < _lease_name(number + 1):
                    store.remove(entry.name)
            return number + 1


def _silent(store: Store, number: int, last: Holder) -> bool:
    """Watch a lease for `LEASE_S` seconds; False as soon as its heartbeat is seen. No clock but ours is used."""
    deadline = time.monotonic() + LEASE_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 4)
        found = newest(store)
        if found is None or found[1].released:
            return True
        if found[0] != number or found[1].beat != last.beat:
            return False
    return True


def _beat(
    store: Store, number: int, me: Holder, stop: threading.Event, lost: threading.Event, holder: threading.Thread
) -> None:
    beat = 0
    while not stop.wait(BEAT_S):
        beat += 1
        with suppress(StorageError):  # an outage: go on until somebody is seen to have taken over
            found = newest(store)
            if found and found[0] > number:
                lost.set()
                _interrupt(holder)
                return
            store.replace(_lease_name(number), replace(me, beat=beat).text())


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, at the next step of its Python code."""
    if thread is threading.main_thread():
        _thread.interrupt_main()
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
        )


def newest(store: Store) -> tuple[int, Holder] | None:
    """Number and holder of the last lease of an output, released or not."""
    names = [
        entry.name for entry in store.list(f"{FOLDER}/") if re.fullmatch(r"\d{12}", entry.name[len(FOLDER) + 1 : -5])
    ]
    for name in sorted(names, reverse=True):
        with suppress(FileNotFoundError):
            found = Holder.read(store.read(name))
            return int(name.rsplit("/")[-1].removesuffix(".json")), found or Holder(
                "unknown", 0, 0.0, "another process"
            )
    return None


def _taken(store: Store) -> OutputInUseError:
    found = newest(store)
    error = (found[1] if found else Holder("unknown", 0, 0.0, "another process")).refusal(store.url)
    return OutputInUseError(
        error.where, f"was taken over while this run could not be heard: it {error.what}", error.fix
    )


def _lease_name(number: int) -> str:
    return f"{FOLDER}/{number:012d}.json"
