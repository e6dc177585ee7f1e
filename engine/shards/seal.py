"""The seal of what lies beside the shards (catalog, conditions, models, plan, results, report, card), kept by the
commands that write it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine import output
from engine.errors import DataError, MimeoError, StorageError
from engine.shards.manifest import FileSeal
from engine.spec import canonical_json, digest
from engine.storage.abstract_store import check_name
from engine.storage.claim import SPEC
from engine.storage.parallel import mapped
from engine.storage.store import Store

OTHERS = output.SEAL
OPEN = ".mimeo.open.json"
FORMAT = 1
UNSEALED = (
    "data",
    "checkpoints",
)  # what the manifest covers, here and in outputs within; what only an unfinished training needs
CHUNK = 1 << 22
States = dict[str, list[Any]]


@dataclass
class Coverage:
    """What the seal of the other files says: how many are as they were sealed, `faults`, and names that no seal covers.

    `pending` were written by a command that is running, or that ended before it could seal them.
    """

    sealed: int = 0
    faults: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)


@contextmanager
def sealing(store: Store) -> Iterator[None]:
    """Seal, when the block ends, the files that it has written; to be used by who holds the output's lock.

    What was there before keeps the seal that it has, or has not: a change from elsewhere is never sealed. Where the
    block is killed, the next one seals what both have written. DataError, before the block, where the seal itself was
    changed.
    """
    before = _opened(store)
    try:
        yield
    except MimeoError:
        _close(store, before)
        raise
    _close(store, before)


def update(store: Store, names: Iterable[str]) -> None:
    """Seal files that were just written, beside those that are sealed."""
    _write(store, {**(load(store) or {}), **_hashed(store, names)})


def load(store: Store) -> dict[str, FileSeal] | None:
    """Size and SHA-256 of each sealed file by name, None where there is no seal; DataError where a byte of it was
    changed."""
    if not store.exists(OTHERS):
        return None
    text = store.read(OTHERS)
    try:
        data = json.loads(text)
        files: dict[str, FileSeal] = data["files"]
        sound = all(type(file["bytes"]) is int and isinstance(file["sha256"], str) for file in files.values())
        if _text(files) != text or not sound:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fix = "restore it; without it, remove it and what it sealed is told as not covered"
        raise DataError(f"{store.url}/{OTHERS}", "was changed or cut", fix) from None
    return files


def check(store: Store) -> Coverage:
    """Compare every file beside the shards with its seal."""
    found, now = Coverage(), _states(store)
    try:
        files = load(store) or {}
    except DataError as error:
        return Coverage(faults=[f"{OTHERS}: {error.what}"])
    before = _noted(store)
    found.uncovered = sorted(name for name in now if name not in files)
    names = sorted(files)
    for name, fault in zip(
        names,
        mapped(lambda name: content_fault(store, name, files[name]["bytes"], files[name]["sha256"]), names, 4),
        strict=True,
    ):
        if fault is None:
            found.sealed += 1
        elif before is not None and now.get(name) != before.get(name):
            found.pending.append(name)
        else:
            found.faults.append(f"{name}: {fault}")
    if before is not None:
        found.pending += [name for name in found.uncovered if now[name] != before.get(name)]
        found.uncovered = [name for name in found.uncovered if name not in found.pending]
    return found


def content_fault(
    store: Store, name: str, size: int, sha256: str, owner: Callable[[str], str | None] | None = None
) -> str | None:
    """Why a file is not the one that was sealed, or None; `owner` names the file that has a SHA-256."""
    facts = _facts(store, name)
    if facts is None:
        return "is missing"
    if facts == {"bytes": size, "sha256": sha256}:
        return None
    if owner and (other := owner(facts["sha256"])):
        return f"holds what belongs in {other}"
    return "has changed bytes" if facts["bytes"] == size else f"has {facts['bytes']:,} bytes, {size:,} were sealed"


def _opened(store: Store) -> States:
    """The files as they were before the first command that has not sealed what it wrote; noted for the case of a
    kill."""
    load(store)
    before = _noted(store)
    if before is None:
        before = _states(store)
        if not store.exists(OTHERS) and set(before) == {SPEC}:  # a new output, claimed in this moment
            before = {}
        store.replace(OPEN, canonical_json(before).encode())
    return before


def _close(store: Store, before: States) -> None:
    old, now = load(store) or {}, _states(store)
    kept = {name: old[name] for name, state in now.items() if before.get(name) == state and name in old}
    _write(store, kept | _hashed(store, (name for name, state in now.items() if before.get(name) != state)))
    store.remove(OPEN)


def _noted(store: Store) -> States | None:
    try:
        found = json.loads(store.read(OPEN))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _states(store: Store) -> States:
    """Size and version of every file that belongs to the seal."""
    return {
        entry.name: [entry.size, entry.version]
        for entry in store.list()
        if entry.name != OTHERS and not set(UNSEALED) & set(entry.name.split("/")[:-1]) and _is_ours(entry.name)
    }


def _is_ours(name: str) -> bool:
    """Whether the engine could have written a file of this name."""
    try:
        return check_name(name) == name
    except StorageError:
        return False


def _hashed(store: Store, names: Iterable[str]) -> dict[str, FileSeal]:
    found = mapped(lambda name: (name, _facts(store, name)), list(names), 4)
    return {name: facts for name, facts in found if facts is not None}


def _facts(store: Store, name: str) -> FileSeal | None:
    """Size and SHA-256 of a file, read in pieces of 4 MiB; None where it is absent, or no file."""
    if not store.exists(name):
        return None
    found, length = hashlib.sha256(), 0
    try:
        with store.open(name) as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
                length += len(chunk)
    except FileNotFoundError:
        return None
    return {"bytes": length, "sha256": found.hexdigest()}


def _text(files: dict[str, FileSeal]) -> bytes:
    data = {"format": FORMAT, "files": files}
    return (canonical_json({**data, "seal": digest(data)}) + "\n").encode()


def _write(store: Store, files: dict[str, FileSeal]) -> None:
    text = _text(files)
    if not store.exists(OTHERS) or store.read(OTHERS) != text:
        store.replace(OTHERS, text)
