"""The one door to storage: a checked URL in, a store with exclusive publish out."""

from __future__ import annotations

import os
import time
from pathlib import Path

from engine.errors import StorageError
from engine.storage.abstract_store import TEMPORARY, Entry, Store
from engine.storage.local import LocalStore, host
from engine.storage.remote import RemoteStore
from engine.storage.urls import is_remote, normalise

__all__ = ["Entry", "Store", "address", "open_store", "sweep"]


def open_store(url: str | Path, *, probe: bool = False) -> Store:
    """Open the place that a URL or path names; nothing is made before the first write.

    `probe`: publish a small file twice and remove it, so that a place that cannot be written, or whose exclusive create
    does not hold, is refused now. Raises ConfigError for URLs that are not allowed, StorageError for the rest.
    """
    place = normalise(str(url))
    store = RemoteStore(place) if is_remote(place) else LocalStore(place)
    if probe:
        name = f"{TEMPORARY}probe-{host()}-{os.getpid()}-{time.time_ns()}"
        if isinstance(store, RemoteStore):
            store.probe(name)
        else:
            _probe_local(store, name)
    return store


def address(store: Store, name: str) -> str:
    """The path of a file or folder of a store, or its URL where the store is remote."""
    return str(store.local(name) or f"{store.url}/{name}")


def sweep(store: Store) -> int:
    """Remove what dead writers left behind (temporary files of a local folder); returns how many files."""
    return store.sweep() if isinstance(store, LocalStore) else 0


def _probe_local(store: LocalStore, name: str) -> None:
    try:
        first, second = store.create(name, b"first"), store.create(name, b"second")
        store.remove(name)
    except FileNotFoundError as error:
        raise StorageError(store.url, "cannot be made", "choose another folder") from error
    except StorageError as error:
        raise StorageError(store.url, error.what, error.fix) from error
    if not first or second:
        raise StorageError(store.url, "exclusive create does not hold on this file system", "choose another folder")
