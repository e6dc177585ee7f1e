"""Leases on stores without locks: refused while a heartbeat is seen, taken over once by one when it is not."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from engine.errors import OutputInUseError
from engine.storage import lease
from engine.storage.holder import Holder
from engine.storage.lock import hold, holder
from engine.storage.store import Store, open_store
from tests.support.holders import holding

NAME = f"{lease.FOLDER}/000000000001.json"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store in memory, with heartbeats and leases short enough to wait for."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "LEASE_S", 3.0)
    return open_store(f"memory://{uuid.uuid4().hex}/out")


def elsewhere(**changes: object) -> Holder:
    """A holder on another machine."""
    return replace(Holder("other-host", 4711, 1.6e9, "mimeo generate", "other-boot/1", "n0"), **changes)


def test_a_live_holder_is_respected(memory: Store) -> None:
    with hold(memory, "mimeo generate"):
        assert list(memory.list()) == []
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(OutputInUseError, match="mimeo generate"), hold(memory, "mimeo train"):
                pytest.fail("held twice")
            assert time.monotonic() - began < 2.9
        found = holder(memory)
        assert found is not None
        assert found.what == "mimeo generate"
    assert holder(memory) is None


def test_a_released_lease_is_free_at_once(memory: Store) -> None:
    for _ in range(3):
        began = time.monotonic()
        with hold(memory, "mimeo generate"):
            pass
        assert time.monotonic() - began < 2.9
    assert len(list(memory.list(f"{lease.FOLDER}/"))) == 1


def test_a_silent_lease_is_taken_over_by_one(memory: Store) -> None:
    memory.create(NAME, elsewhere().text())
    together, refused = threading.Barrier(6), threading.Semaphore(0)

    def enter(_: int) -> bool:
        together.wait()
        try:
            with hold(open_store(memory.url), "mimeo generate"):
                for _ in range(5):
                    assert refused.acquire(timeout=20)
            return True
        except OutputInUseError:
            refused.release()
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(enter, range(6))) == [False] * 5 + [True]


def test_a_beating_lease_on_another_machine_is_refused_whatever_its_clock(memory: Store) -> None:
    for since in (0.0, 4e9):
        memory.replace(NAME, elsewhere(since=since).text())
        stop = threading.Event()

        def beat(since: float = since, stop: threading.Event = stop) -> None:
            number = 0
            while not stop.wait(0.05):
                number += 1
                memory.replace(NAME, elsewhere(since=since, beat=number).text())

        heart = threading.Thread(target=beat)
        heart.start()
        try:
            with pytest.raises(OutputInUseError, match="other-host, process 4711"), hold(memory, "mimeo train"):
                pytest.fail("took a live lease")
        finally:
            stop.set()
            heart.join()


def test_whoever_is_taken_over_is_stopped(memory: Store) -> None:
    def work() -> None:
        with hold(memory, "mimeo generate"):
            memory.create(f"{lease.FOLDER}/000000000002.json", elsewhere().text())
            for _ in range(100):
                time.sleep(0.05)
            pytest.fail("went on after another had taken over")

    with pytest.raises(OutputInUseError, match=r"taken over.*other-host"):
        work()
    newest = lease.newest(memory)
    assert newest is not None
    assert newest == (2, elsewhere())  # and did not touch the other's lease


def test_whoever_is_taken_over_in_another_thread_is_stopped_there_and_nobody_else(memory: Store) -> None:
    """As in a trial of a study, whose process belongs to Ray in its main thread."""
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(test_whoever_is_taken_over_is_stopped, memory)
        while not ended.done():  # an interrupt of this thread would end the test
            time.sleep(0.01)
    ended.result()


def test_whoever_ignores_interrupts_is_stopped_too(memory: Store) -> None:
    """As `mimeo ... &` in a script, which the shell starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold(memory, "mimeo generate"):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # a user's own interrupt is ignored as before
        test_whoever_is_taken_over_is_stopped(open_store(f"memory://{uuid.uuid4().hex}/out"))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_of_the_user_stays_one(memory: Store) -> None:
    with pytest.raises(KeyboardInterrupt), hold(memory, "mimeo generate"):
        raise KeyboardInterrupt
    assert holder(memory) is None


def test_a_torn_lease_is_taken_over_after_its_time(memory: Store) -> None:
    memory.create(NAME, b'{"host"')
    began = time.monotonic()
    with hold(memory, "mimeo generate"):
        assert 2.9 < time.monotonic() - began < 10


def test_on_s3_a_killed_holder_is_known_dead_at_once(s3_url: str) -> None:
    store = open_store(s3_url)
    with holding(s3_url) as process:
        began = time.monotonic()
        with pytest.raises(OutputInUseError, match=f"process {process.pid}"), hold(store, "mimeo train"):
            pytest.fail("held twice")
        assert time.monotonic() - began < 10
        process.kill()
        began = time.monotonic()
        while holder(store) is not None:
            assert time.monotonic() - began < 5
        with hold(store, "mimeo train"):
            assert time.monotonic() - began < 10
