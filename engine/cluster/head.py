"""Whether the head of a joined cluster still answers: its loss ends a driver in one line, before Ray ends it without any."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import ClusterError

SILENCE_S = 45.0  # Ray ends a driver's process after 60
POLL_S = 5.0


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

    Yields the event that says so. The main thread is woken by SIGTERM, whose handler must raise. What Ray would do at the end
    of a process that lost its head (wait, then abort) is left out: nothing of it is to be given back.
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
