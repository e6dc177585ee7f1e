"""What is loaded is what was hashed: every way to change a file, before, during and after; and who hashes it how
often."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import StorageError
from engine.storage import notes, origin

OLD, NEW = b"old bytes " * 1000, b"new bytes " * 1000


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose last change lies back further than any clock's tick."""
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(origin, "SETTLED_S", 0.05)
    path = tmp_path / "weights"
    path.write_bytes(OLD)
    time.sleep(0.1)
    return path


def overwrite(path: Path) -> None:
    """In place, of equal size, the time put back."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(NEW)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange(path: Path) -> None:
    """By another file of equal size and time, moved over it."""
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(NEW)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def exchange_and_put_back(path: Path) -> None:
    kept = path.with_name("kept")
    path.rename(kept)
    path.write_bytes(NEW)
    kept.replace(path)


def remove(path: Path) -> None:
    path.unlink()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES = [overwrite, exchange, remove, pipe]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_before_is_not_loaded(file: Path, change: Callable[[Path], None]) -> None:
    digest = origin.sha256(file)
    assert digest == sha(OLD)
    change(file)
    with pytest.raises(StorageError) as caught, origin.unchanged({file: digest}):
        pytest.fail("it was loaded")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [*CHANGES, exchange_and_put_back])
@pytest.mark.parametrize("breaks", [False, True])
def test_what_changes_meanwhile_is_not_used(file: Path, change: Callable[[Path], None], breaks: bool) -> None:
    def load() -> None:
        change(file)
        if breaks:
            raise ValueError("what a loader makes of a file that is half another")

    with pytest.raises(StorageError), origin.unchanged({file: sha(OLD)}):
        load()


def test_a_loader_that_fails_by_itself_says_so(file: Path) -> None:
    with pytest.raises(ValueError, match="its own"), origin.unchanged({file: sha(OLD)}):
        raise ValueError("its own")


def test_a_file_that_was_just_written_is_hashed_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes within one tick of the clock look the same to `stat`."""
    monkeypatch.setattr(origin, "SETTLED_S", 3600.0)
    fixed = origin.version(file)
    monkeypatch.setattr(origin, "_version", lambda *_: fixed)
    with pytest.raises(StorageError, match="while it was loaded"), origin.unchanged({file: sha(OLD)}):
        overwrite(file)


def test_one_process_of_a_node_hashes_and_the_others_wait(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from engine.storage import origin\n"
        "def slow(path, version, real=origin._hash):\n    print('hashed'); time.sleep(0.5); "
        "return real(path, version)\n"
        "origin._hash = slow; origin.SETTLED_S = 0.05; print(origin.sha256(Path(sys.argv[1]), noted=True))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert [words[-1] for words in said] == [sha(OLD)] * 3
    assert sum(words.count("hashed") for words in said) == 1
    assert origin.sha256(file) == sha(OLD)  # the driver looks itself


def test_a_forged_note_of_another_version_does_not_count(file: Path) -> None:
    origin.sha256(file)
    (note,) = (notes.node_cache.folder() / notes.FOLDER).glob("*.json")
    note.write_text(note.read_text().replace(sha(OLD), sha(NEW)).replace('"ctime_ns": ', '"ctime_ns": 1'))
    origin._KNOWN.clear()
    assert origin.sha256(file, noted=True) == sha(OLD)
