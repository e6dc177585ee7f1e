"""The ledger of a run's output: every reading of the test split, by any command, one small file each, never changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256

from typing_extensions import TypedDict

from engine import output
from engine.storage import documents
from engine.storage.store import Store

FOLDER = output.TEST_READINGS


class TestReading(TypedDict):
    """Who read the test split: the command, the stage of it, arms and classifiers by name, on how many images, when
    (UTC)."""

    command: str
    stage: str
    arms: list[str]
    classifiers: list[str]
    images: int
    time: str


def note(store: Store, command: str, stage: str, arms: Sequence[str], classifiers: Sequence[str], images: int) -> None:
    """Write down, BEFORE it happens, that these classifiers (by names of their own in this stage) read the test split.

    Those that the stage has written down before are no further reading: a command that was cut short and goes on
    repeats what it began. The file's name follows from what it says but for the time, so that two processes that say
    the same write once.
    """
    known = {
        name
        for one in readings(store)
        if (one["command"], one["stage"]) == (command, stage)
        for name in one["classifiers"]
    }
    new = sorted(set(classifiers) - known)
    if not new:
        return
    facts = {
        "command": command,
        "stage": stage,
        "arms": list(dict.fromkeys(arms)),
        "classifiers": new,
        "images": images,
    }
    key = sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    told = facts | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
    store.create(f"{FOLDER}/{key}.json", json.dumps(told, sort_keys=True).encode())


def readings(store: Store) -> list[TestReading]:
    """All readings so far, the earliest first."""
    names = [entry.name for entry in store.list(f"{FOLDER}/") if entry.name.endswith(".json")]
    found = [documents.read(store, name, TestReading) for name in names]
    return sorted(found, key=lambda one: (one["time"], one["command"], one["stage"]))


def sentence(found: Sequence[TestReading]) -> str:
    """Such as `The test split was read 2 times: by judge (3 arms, 9 classifiers), by search (2 arms, 30
    classifiers).`"""
    if not found:
        return "The test split was not read."
    told = ", ".join(
        f"by {_who(one)} ({_count(one['arms'], 'arm')}, {_count(one['classifiers'], 'classifier')})" for one in found
    )
    return f"The test split was read {'once' if len(found) == 1 else f'{len(found)} times'}: {told}."


def _who(one: TestReading) -> str:
    return one["command"] if one["stage"] in ("", one["command"]) else f"{one['command']}, {one['stage']}"


def _count(things: Sequence[str], word: str) -> str:
    return f"{len(things):,} {word}{'' if len(things) == 1 else 's'}"
