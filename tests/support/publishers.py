"""Processes that publish files, to be raced, traced and killed: `python -m tests.support.publishers VERB ROOT ...`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engine.storage.local import LocalStore

NAME = "data/toy-000000.tar"
ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: object) -> list[str]:
    """The command line of one publisher process; run it in `ROOT`."""
    return [sys.executable, "-m", "tests.support.publishers", *map(str, arguments)]


def payload(size: int) -> bytes:
    """What the publishers write: bytes that differ at every offset of a page."""
    return bytes(range(251)) * (size // 251) + bytes(size % 251)


def race(root: str, racer: str, rounds: str, racers: str) -> None:
    """Publish one file a round, all racers at the same moment; print the rounds that this one won."""
    store, gate = LocalStore(root), Path(root).with_name("gate")
    for number in range(int(rounds)):
        Path(f"{gate}-{number}-{racer}").touch()
        while not all(Path(f"{gate}-{number}-{other}").exists() for other in range(int(racers))):
            time.sleep(0)
        if store.create(f"data/{number}", f"{racer} ".encode() * 50_000):
            print(number, flush=True)


def publish(root: str, size: str, verb: str) -> None:
    """Publish one file, between two system calls on the paths START and END by which a tracer knows the steps."""
    store, data = LocalStore(root), payload(int(size))
    cut = int(size) // 3
    content = (data[:cut], b"", data[cut:]) if verb == "create_in_pieces" else data
    os.access("/START", os.F_OK)
    getattr(store, verb.partition("_")[0])(NAME, content)
    os.access("/END", os.F_OK)


def stream(root: str, size: str) -> None:
    """Publish file after file until killed; print each name after it is published."""
    store, data = LocalStore(root), payload(int(size))
    print("ready", flush=True)
    for number in range(10**6):
        store.create(f"data/{os.getpid()}-{number}", data)
        print(number, flush=True)


if __name__ == "__main__":
    {"race": race, "publish": publish, "stream": stream}[sys.argv[1]](*sys.argv[2:])
