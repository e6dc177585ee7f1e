"""JSON read back through its type: what was written comes back equal, anything else is a DataError that names the
place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from engine.errors import DataError
from engine.storage import documents
from engine.storage.store import open_store


class Inner(TypedDict):
    interval: list[float | None]
    counts: dict[str, int]


class Outer(TypedDict):
    name: str
    inner: Inner


@dataclass(frozen=True)
class Row:
    arm: str
    seed: int
    pairs: list[tuple[int, int]]


WHOLE = {"name": "a", "inner": {"interval": [0.5, None], "counts": {"x": 1}}}


def test_what_was_written_comes_back_equal(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    assert documents.find(store, "a.json", Outer) is None
    with pytest.raises(FileNotFoundError):
        documents.read(store, "a.json", Outer)
    store.replace("a.json", json.dumps({**WHOLE, "later": 1}).encode())
    assert documents.read(store, "a.json", Outer) == WHOLE
    row = Row("real", 3, [(1, 2), (3, 4)])
    assert documents.parse(json.dumps(asdict(row)).encode(), Row, "w") == row


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"\xff\xfe",
    b'{"name": "a", "inner": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    json.dumps({**WHOLE, "name": 1}).encode(),
    json.dumps({**WHOLE, "inner": {**WHOLE["inner"], "counts": {"x": 1.5}}}).encode(),
    json.dumps({**WHOLE, "inner": {**WHOLE["inner"], "interval": [float("nan"), 1.0]}}).encode(),
    json.dumps({**WHOLE, "inner": {**WHOLE["inner"], "interval": "01"}}).encode(),
    b'{"name": "a", "inner": {"interval": [], "counts": {"x": ' + b"9" * 5000 + b"}}}",
]


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: f"{len(text)}-{text[:12]!r}")
def test_anything_else_is_one_line_that_names_the_file(text: bytes) -> None:
    with pytest.raises(DataError, match=r"^out/a\.json: is not .*; restore it"):
        documents.parse(text, Outer, "out/a.json")


def test_a_file_too_large_to_be_ours_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="more than the 10"):
        documents.parse(json.dumps(WHOLE).encode(), Outer, "out/a.json")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_value_or_a_data_error(text: bytes) -> None:
    try:
        found = documents.parse(text, Outer, "w")
    except DataError:
        return
    assert found == json.loads(text)
