"""What every store promises, held against a folder, memory and S3 alike."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import ConfigError, StorageError
from engine.storage.abstract_store import Entry
from engine.storage.local import _write
from engine.storage.store import Store, open_store, sweep

ROOT = Path(__file__).resolve().parents[3]


def test_create_publishes_once(store: Store) -> None:
    assert store.create("data/a.tar", b"first")
    assert not store.create("data/a.tar", b"second")
    assert not store.create("data/a.tar", b"other")
    assert store.read("data/a.tar") == b"first"


def test_create_consumes_a_file(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "made.bin"
    source.write_bytes(b"x" * 100_000)
    assert store.create("big.bin", source)
    assert store.read("big.bin") == b"x" * 100_000
    assert not source.exists()
    source.write_bytes(b"y")
    assert not store.create("big.bin", source)
    assert store.read("big.bin") == b"x" * 100_000


def test_create_takes_pieces(store: Store) -> None:
    pieces = tuple(bytes([number % 251]) * (number % 7) for number in range(1500))
    assert store.create("pieces.bin", pieces)
    assert not store.create("pieces.bin", pieces[:-1])
    assert store.read("pieces.bin") == b"".join(pieces)
    assert store.create("none.bin", ())
    assert store.read("none.bin") == b""


def test_a_call_that_takes_a_part_of_the_pieces_is_carried_on(tmp_path: Path) -> None:
    pieces = tuple(bytes([number]) * 100_000 for number in range(12))
    code = (
        "import resource, sys; from engine.storage.store import open_store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (450_000, 450_000))\n"
        "pieces = tuple(bytes([number]) * 100_000 for number in range(12))\n"
        "try: open_store(sys.argv[1]).create('a.bin', pieces)\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert "larger than the limit" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())
    read, write = os.pipe()
    os.set_blocking(write, True)
    with ThreadPoolExecutor(1) as pool, os.fdopen(read, "rb") as stream:
        found = pool.submit(stream.read)
        _write(write, pieces)
        os.close(write)
        assert found.result() == b"".join(pieces)


def test_replace_overwrites(store: Store) -> None:
    for content in (b"one", b"", b"three"):
        store.replace("results/a.json", content)
        assert store.read("results/a.json") == content


def test_empty_files_are_files(store: Store) -> None:
    assert store.create("empty", b"")
    assert store.exists("empty")
    assert store.read("empty") == b""
    assert not store.create("empty", b"x")


def test_absent_files(store: Store) -> None:
    store.create("data/a.tar", b"1")
    assert not store.exists("data")
    for name in ("data/b.tar", "nothing/at/all"):
        assert not store.exists(name)
        for reading in (store.read, store.open):
            with pytest.raises(FileNotFoundError):
                reading(name)
        store.remove(name)


def test_list_tells_names_and_sizes_now(store: Store) -> None:
    assert list(store.list()) == []
    for name in ("spec.yaml", "data/toy-000000.tar", "data/toy-000001.tar", "data/sub/x", "database"):
        store.create(name, name.encode())
    everything = {Entry(n, len(n)) for n in ("spec.yaml", "data/toy-000000.tar", "data/toy-000001.tar", "data/sub/x")}
    assert set(store.list()) == everything | {Entry("database", 8)}
    assert [entry.name for entry in store.list("data/toy-00")] == ["data/toy-000000.tar", "data/toy-000001.tar"]
    assert {entry.name for entry in store.list("data/")} == {"data/sub/x", "data/toy-000000.tar", "data/toy-000001.tar"}
    assert [entry.name for entry in store.list("data/sub/")] == ["data/sub/x"]
    assert list(store.list("none/")) == []
    store.remove("database")
    assert set(store.list()) == everything


def test_another_instance_sees_every_change_at_once(store: Store) -> None:
    other = open_store(store.url)
    for number in range(10):
        assert not other.exists(f"data/{number}")
        store.create(f"data/{number}", b"x" * number)
        assert other.exists(f"data/{number}")
        assert Entry(f"data/{number}", number) in list(other.list("data/"))
        store.replace(f"data/{number}", b"longer than before")
        assert other.read(f"data/{number}") == b"longer than before"
        assert Entry(f"data/{number}", 18) in list(other.list("data/"))


def test_open_streams_and_seeks(store: Store) -> None:
    content = bytes(range(256)) * 1000
    store.create("a", content)
    with store.open("a") as stream:
        assert stream.read(10) == content[:10]
        stream.seek(100_000)
        assert stream.read(100) == content[100_000:100_100]
        assert stream.seek(0, 2) == len(content)


def test_stores_travel_to_workers(store: Store) -> None:
    store.create("a", b"1")
    copy: Store = pickle.loads(pickle.dumps(store))
    assert copy.url == store.url
    assert copy.read("a") == b"1"


def test_probe_leaves_nothing(store: Store) -> None:
    open_store(store.url, probe=True)
    assert list(store.list()) == []
    assert sweep(store) == 0


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../up", "a/../../b", "a//b", "a/", "./a", "a\\b", "a\nb", "a\0b", "x" * 151, "d/" * 400],
)
def test_names_that_lead_elsewhere_are_refused(store: Store, name: str) -> None:
    for use in (store.read, store.exists, store.remove, store.local, store.open):
        with pytest.raises(StorageError, match="not a file name inside an output"):
            use(name)
    with pytest.raises(StorageError):
        store.create(name, b"")
    with pytest.raises(StorageError):
        store.replace(name, b"")


def test_names_may_hold_spaces_and_letters_of_any_script(store: Store) -> None:
    for name in ("a b/c d.txt", "ünï/çö.txt", "百/数.txt", "100%/a+b=c.txt", "-dash"):
        assert store.create(name, name.encode())
        assert store.read(name) == name.encode()
    assert len(list(store.list())) == 5


def test_packages_that_are_not_there_are_named() -> None:
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"needs the package gcsfs; pip install"):
            open_store("gs://bucket/out").exists("a")
    else:
        pytest.skip("gcsfs is installed")
