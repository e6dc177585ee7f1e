"""One holder at a time on a local folder; the kernel lets go when the holder dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.errors import OutputInUseError, StorageError
from engine.storage.lock import FILE, hold, holder
from engine.storage.store import open_store
from tests.support.holders import ROOT, holding


def test_the_second_is_told_who_and_since_when(tmp_path: Path) -> None:
    store, before = open_store(tmp_path / "out"), datetime.now(UTC)
    with holding(store.url) as process:
        began = time.monotonic()
        with pytest.raises(OutputInUseError) as caught, hold(store, "mimeo train"):
            pytest.fail("held twice")
        assert time.monotonic() - began < 3
        line = str(caught.value)
        for part in (store.url, socket.gethostname(), f"process {process.pid}", "mimeo generate", f"{before:%Y-%m-%d}"):
            assert part in line
        assert caught.value.exit_code == 5
        found = holder(store)
        assert found is not None
        assert (found.pid, found.host, found.what) == (process.pid, socket.gethostname(), "mimeo generate")
        assert abs(found.since - before.timestamp()) < 60


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out")
    for options in ((), ("fork",)):  # also when a child of the holder lives on
        with holding(store.url, *options) as process:
            process.kill()
            process.wait()
            assert holder(store) is None
            with hold(store, "mimeo generate"):
                found = holder(store)
                assert found is not None
                assert found.pid == os.getpid()


def test_the_end_leaves_nothing_behind(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out")
    for _ in range(3):
        with hold(store, "mimeo generate"):
            assert (tmp_path / "out" / FILE).exists()
            assert list(store.list()) == []
        assert holder(store) is None
        assert not (tmp_path / "out" / FILE).exists()
    with pytest.raises(KeyError), hold(store, "mimeo generate"):
        raise KeyError
    assert holder(store) is None


def test_one_process_cannot_hold_twice(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out")
    with (
        hold(store, "mimeo generate"),
        pytest.raises(OutputInUseError, match=f"process {os.getpid()}"),
        hold(open_store(store.url), "mimeo train"),
    ):
        pytest.fail("held twice")


def test_of_many_that_start_at_once_one_holds(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from engine.storage.lock import hold; "
        "from engine.storage.store import open_store; from engine.errors import OutputInUseError\n"
        "gate = Path(sys.argv[2])\n"
        "while not gate.exists(): time.sleep(0)\n"
        "try:\n"
        "    with hold(open_store(sys.argv[1]), 'mimeo generate'): time.sleep(3)\n"
        "except OutputInUseError: sys.exit(5)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(tmp_path / "gate")]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(4)]
    time.sleep(1)
    (tmp_path / "gate").touch()
    assert sorted(process.wait(timeout=30) for process in running) == [0, 5, 5, 5]


def test_a_torn_lock_file_is_no_obstacle(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for text in (b"", b"{", b"null", b'{"host": 1}', b"\xff" * 100):
        (tmp_path / FILE).write_bytes(text)
        assert holder(store) is None
        with hold(store, "mimeo generate"):
            assert holder(store) is not None


def test_a_place_that_cannot_be_locked_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"), hold(open_store(tmp_path / "file"), "mimeo generate"):
        pytest.fail("held a file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / FILE).symlink_to(tmp_path / "file")
    with pytest.raises(StorageError), hold(open_store(tmp_path / "out"), "mimeo generate"):
        pytest.fail("followed a link")
