"""A head that falls silent ends the driver in one line and with its exit code, from the midst of whatever it waits
for."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.cluster import head

ROOT = Path(__file__).resolve().parents[3]
DRIVER = """
import signal, sys, threading
from engine.cluster import head
from engine.errors import MimeoError

class Terminated(BaseException): pass
def terminate(*_): raise Terminated
signal.signal(signal.SIGTERM, terminate)
head.SILENCE_S, head.POLL_S = 1.0, 0.2
try:
    with head.watched(sys.argv[1]):
        print("waiting", flush=True)
        threading.Event().wait()
except MimeoError as error:
    print("error:", error, flush=True)
    sys.exit(error.exit_code)
except Terminated:
    sys.exit(143)
"""


def start(address: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", DRIVER, address]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


def test_a_silent_head_ends_the_driver() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert head.answers(address)
        process = start(address)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)  # while it answers nothing happens
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 6
    assert said == (
        f"error: cluster: its head at {address} has not answered for 1 s; what is published is kept: "
        "the same command goes on, on this cluster or another\n"
    )
    assert not head.answers(address)


def test_a_signal_is_a_signal_while_the_head_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = start(f"127.0.0.1:{server.getsockname()[1]}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143


def test_other_threads_are_not_interrupted() -> None:
    threads = threading.active_count()
    seen: list[bool] = []

    def work() -> None:
        with head.watched("127.0.0.1:1") as lost:
            seen.append(lost.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
    assert threading.active_count() == threads
