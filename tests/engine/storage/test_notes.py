"""Notes of a node: found again under equal keys alone, and never a reason to fail."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engine.storage import notes


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIMEO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_value_is_found_under_its_kind_and_key_alone() -> None:
    notes.write("size", {"gpu": ["A", 1.5], "batch": 8}, 64)
    assert notes.read("size", {"batch": 8, "gpu": ["A", 1.5]}) == 64
    assert notes.read("size", {"batch": 9, "gpu": ["A", 1.5]}) is None
    assert notes.read("other", {"batch": 8, "gpu": ["A", 1.5]}) is None


def test_a_broken_note_is_none_and_written_again(folder: Path) -> None:
    notes.write("size", {"a": 1}, 64)
    (path,) = (folder / notes.FOLDER).iterdir()
    for text in (b"", b"{", b"[]", b'{"key": {"a": 2}, "value": 3}', b"\xff"):
        path.write_bytes(text)
        assert notes.read("size", {"a": 1}) is None
    notes.write("size", {"a": 1}, 32)
    assert notes.read("size", {"a": 1}) == 32
    assert list((folder / notes.FOLDER).iterdir()) == [path]


def test_a_check_that_has_passed_is_not_run_again(folder: Path) -> None:
    run: list[int] = []

    def failing() -> None:
        raise ValueError("not yet")

    with pytest.raises(ValueError, match="not yet"):
        notes.once("checked", {"of": "x"}, failing)
    for _ in range(3):
        notes.once("checked", {"of": "x"}, lambda: run.append(1))
    notes.once("checked", {"of": "y"}, lambda: run.append(2))
    assert run == [1, 2]


def test_where_nothing_can_be_written_the_check_runs_each_time(folder: Path) -> None:
    folder.write_text("a file in the way")
    run: list[int] = []
    for _ in range(2):
        notes.once("checked", {}, lambda: run.append(1))
    assert run == [1, 1]


def test_only_what_this_user_wrote_counts(folder: Path) -> None:
    """In a cache that users share, another's "passed" would spare a check."""
    notes.write("checked", {}, True)
    (path,) = (folder / notes.FOLDER).iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert notes.read("checked", {}) is True
    path.chmod(0o620)  # another could have changed it
    assert notes.read("checked", {}) is None
    path.chmod(0o600)
    kept = path.rename(folder / "elsewhere")
    path.symlink_to(kept)
    assert notes.read("checked", {}) is None
    path.unlink()
    kept.rename(path)
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, 65534)
    assert notes.read("checked", {}) is None
    run: list[int] = []
    notes.once("checked", {}, lambda: run.append(1))
    assert run == [1]
    assert notes.read("checked", {}) is True
