"""Copies of remote files on this node: whole or absent under kill -9, made once by many, anew when the content
changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from engine.errors import StorageError
from engine.storage import node_cache
from engine.storage.node_cache import fetch
from engine.storage.store import Store, open_store
from tests.support import s3
from tests.support.publishers import ROOT
from tests.support.s3 import Faults

FETCH = "import sys; from engine.storage.node_cache import fetch; print(fetch(sys.argv[1]))"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of these tests."""
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(url: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FETCH, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def entries(folder: Path) -> list[str]:
    """Finished copies and what is left of others."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(node_cache.LOCK))


@pytest.fixture(params=["memory", "s3"])
def remote(request: pytest.FixtureRequest) -> Store:
    """A store with a folder of three files."""
    url = request.getfixturevalue("s3_url") if request.param == "s3" else f"memory://{time.time_ns()}/out"
    store = open_store(url)
    for name, data in {"model/index.json": b"{}", "model/unet/a.bin": b"a" * 100, "model/unet/b.bin": b""}.items():
        store.create(name, data)
    store.create("other.bin", b"other")
    return store


def test_files_and_folders(remote: Store, folder: Path) -> None:
    copy = fetch(f"{remote.url}/model/")
    found = {path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert found == {"index.json": b"{}", "unet/a.bin": b"a" * 100, "unet/b.bin": b""}
    assert copy.is_relative_to(folder)
    assert fetch(f"{remote.url}/model") == copy
    single = fetch(f"{remote.url}/other.bin", digests={"other.bin": hashlib.sha256(b"other").hexdigest()})
    assert (single.name, single.read_bytes()) == ("other.bin", b"other")
    part = fetch(f"{remote.url}/model", select=lambda names: [name for name in names if name.startswith("unet")])
    assert sorted(path.name for path in part.rglob("*")) == ["a.bin", "b.bin", "unet"]
    assert len(entries(folder)) == 3


def test_changed_content_is_another_copy(remote: Store) -> None:
    before = fetch(f"{remote.url}/model")
    remote.replace("model/unet/a.bin", b"b" * 100)
    after = fetch(f"{remote.url}/model")
    assert (before / "unet/a.bin").read_bytes() == b"a" * 100
    assert (after / "unet/a.bin").read_bytes() == b"b" * 100
    remote.remove("model/unet/b.bin")
    assert not (fetch(f"{remote.url}/model") / "unet/b.bin").exists()


def test_other_content_than_was_asked_for_is_refused(remote: Store) -> None:
    wanted = {"unet/a.bin": hashlib.sha256(b"a" * 100).hexdigest()}
    fetch(f"{remote.url}/model", digests=wanted)
    remote.replace("model/unet/a.bin", b"b" * 100)
    for _ in range(2):  # also when the other content is there already
        with pytest.raises(StorageError, match=r"unet/a.bin: is not the file that the run began with"):
            fetch(f"{remote.url}/model", digests=wanted)
    with pytest.raises(StorageError, match=r"unet/c.bin: is not there"):
        fetch(f"{remote.url}/model", digests={"unet/c.bin": "0"})


def test_absent_places_are_one_line(remote: Store, folder: Path) -> None:
    with pytest.raises(StorageError, match=r"/nothing: does not exist or holds no files; check the address"):
        fetch(f"{remote.url}/nothing")
    if remote.url.startswith("s3://"):
        with pytest.raises(StorageError, match=r"no-such-bucket-here.*NoSuchBucket"):
            fetch("s3://no-such-bucket-here/model")
    assert not folder.exists() or entries(folder) == []


def test_no_room_is_known_before_the_download(
    s3_endpoint: str, s3_url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_url).create("big.bin", b"x" * 3_000_000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2**20, 2**20))
    faults = Faults(part="/big.bin")
    says = r"big.bin: needs 2.9 MiB, .*cache has 1.0 MiB free; .*MIMEO_CACHE"
    with (
        s3.proxy(s3_endpoint, faults) as endpoint,
        s3.environment(endpoint),
        pytest.raises(StorageError, match=says),
    ):
        fetch(f"{s3_url}/big.bin")
    assert faults.sent == 0
    assert entries(folder) == []


def test_a_cache_that_cannot_be_made_is_one_line(
    remote: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(node_cache.VARIABLE, str(tmp_path / "file/cache"))
    with pytest.raises(StorageError, match="a file lies where a folder is needed"):
        fetch(f"{remote.url}/model")


def test_processes_at_once_download_once(s3_endpoint: str, s3_url: str, folder: Path) -> None:
    size = 20_000_000
    open_store(s3_url).create("big.bin", os.urandom(size))
    faults = Faults(part="/big.bin", delay=0.3)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        several = [start(f"{s3_url}/big.bin") for _ in range(3)]
        said = {process.communicate(timeout=120)[0].strip() for process in several}
    assert [process.returncode for process in several] == [0, 0, 0]
    assert len(said) == 1
    assert Path(said.pop()).stat().st_size == size
    assert faults.sent == size
    assert len(entries(folder)) == 1


@pytest.mark.parametrize("same", [True, False])
def test_a_killed_download_is_never_seen_and_is_cleaned_up(
    s3_endpoint: str, s3_url: str, folder: Path, same: bool
) -> None:
    data = os.urandom(40_000_000)
    store = open_store(s3_url)
    store.create("big.bin", data)
    store.create("small.bin", b"small")
    with s3.proxy(s3_endpoint, Faults(part="/big.bin", delay=0.5)) as endpoint, s3.environment(endpoint):
        process = start(f"{s3_url}/big.bin")
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in folder.glob(f"*{node_cache.PART}/files/big.bin")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    (left,) = entries(folder)
    assert left.endswith(node_cache.PART)
    assert 0 < (folder / left / "files/big.bin").stat().st_size < len(data)
    copy = fetch(f"{s3_url}/{'big' if same else 'small'}.bin")
    assert copy.read_bytes() == (data if same else b"small")
    assert entries(folder) == [copy.parent.parent.name]


def test_a_running_download_is_not_swept(s3_endpoint: str, s3_url: str, folder: Path) -> None:
    store = open_store(s3_url)
    store.create("big.bin", os.urandom(20_000_000))
    store.create("small.bin", b"small")
    with s3.proxy(s3_endpoint, Faults(part="/big.bin", delay=0.7)) as endpoint, s3.environment(endpoint):
        process = start(f"{s3_url}/big.bin")
        deadline = time.monotonic() + 60
        while not list(folder.glob(f"*{node_cache.PART}/files/big.bin")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        fetch(f"{s3_url}/small.bin")
        assert list(folder.glob(f"*{node_cache.PART}/files/big.bin"))
        assert process.wait(timeout=60) == 0
    assert len(entries(folder)) == 2


def test_passing_faults_are_retried(s3_endpoint: str, s3_url: str) -> None:
    open_store(s3_url).create("a.bin", b"abc")
    faults = Faults(part="/a.bin", refuse=3)
    with s3.proxy(s3_endpoint, faults) as endpoint, s3.environment(endpoint):
        assert fetch(f"{s3_url}/a.bin").read_bytes() == b"abc"
    assert faults.refuse == 0
