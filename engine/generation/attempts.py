"""Poison guard: markers in the store count the workers that died over a shard while one driver was running."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.storage.store import Store

FOLDER = "attempts"
MAX_DEATHS = 5


def new_session() -> str:
    """A name for a driver's session, or for a pool of workers that takes the place of another."""
    return secrets.token_hex(4)


@dataclass(frozen=True)
class Attempts:
    """Markers of one driver session: made when work on a shard begins, removed when it ends in whatever way but death.

    Deaths of another session are not held against a shard: a driver that is killed takes its workers with it.
    """

    store: Store
    session: str

    def deaths(self, name: str) -> int:
        """How many workers have died over `name`, or are at it now."""
        return sum(1 for _ in self.store.list(self._prefix(name)))

    @contextmanager
    def trying(self, name: str) -> Iterator[int]:
        """Mark an attempt at `name` for the block; yields its number, 1 where no worker has died over it before."""
        number = 1 + self.deaths(name)
        marker = f"{self._prefix(name)}{number}-{os.getpid()}"
        self.store.create(marker, f"{socket.gethostname()} {os.getpid()}\n".encode())
        try:
            yield number
        finally:
            self.store.remove(marker)

    def _prefix(self, name: str) -> str:
        return f"{FOLDER}/{self.session}/{name}."


def clear(store: Store) -> None:
    """Remove the markers of every session; for the start and the end of a job, while nobody else works on the
    output."""
    for entry in list(store.list(f"{FOLDER}/")):
        store.remove(entry.name)
