"""Whether the head of a joined cluster still answers, and whether a private Ray still lives: their loss ends a driver
in one line, before Ray ends it without any."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.cluster.terminal import note
from engine.errors import ClusterError

SILENCE_S = 45.0  # Ray ends a driver's process after 60
POLL_S = 5.0
GLANCE_S = 0.05


def answers(address: str) -> bool:
    """Whether a connection to `HOST:PORT` can be made."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=POLL_S).close()
    except OSError:
        return False
    return True


@contextmanager
def watched(address: str) -> Iterator[threading.Event]:
    """Ask the head now and then while the block runs; ClusterError there once it has been silent for `SILENCE_S`.

    Yields the event that says so. The main thread is woken by SIGTERM, whose handler must raise. What Ray would do at
    the end of a process that lost its head (wait, then abort) is left out: nothing of it is to be given back.
    """
    lost, stop = threading.Event(), threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lost
        return

    def loop() -> None:
        heard = time.monotonic()
        while not stop.wait(POLL_S):
            if answers(address):
                heard = time.monotonic()
            elif time.monotonic() - heard >= SILENCE_S:
                lost.set()
                atexit.register(os._exit, ClusterError.exit_code)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return

    threading.Thread(target=loop, daemon=True, name="head").start()
    try:
        yield lost
    except BaseException:
        if lost.is_set():
            fix = "what is published is kept: the same command goes on, on this cluster or another"
            raise ClusterError(
                "cluster", f"its head at {address} has not answered for {SILENCE_S:.0f} s", fix
            ) from None
        raise
    finally:
        stop.set()


PARTS = (
    "raylet",
    "gcs_server",
)  # processes of a private Ray without which its driver is ended by Ray itself, with exit code 1


@contextmanager
def lived(folder: Path) -> Iterator[None]:
    """End this process with a line and `ClusterError`'s exit code when the private Ray in `folder` dies while the block
    runs.

    Nothing else would be in time: Ray ends a driver that has lost its raylet within a second, wherever it is. What a
    run has published stays, as after a kill.
    """
    import ray._private.worker

    started = ray._private.worker._global_node.all_processes
    needed = [(name, each.process) for name in PARTS for each in started.get(name, ())]
    left = [each.process for parts in started.values() for each in parts]
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(GLANCE_S):
            for name, process in needed:
                if process.poll() is not None and not stop.is_set():
                    _end(name, folder, left)

    watcher = threading.Thread(target=loop, daemon=True, name="raylet")
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _end(name: str, folder: Path, left: list[Any]) -> None:
    fix = "what is published is kept: the same command goes on from here"
    error = ClusterError("Ray", f"its process {name} on this machine died (killed, or for want of memory)", fix)
    note(f"error: {error}", sys.stderr)
    for process in left:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(error.exit_code)
