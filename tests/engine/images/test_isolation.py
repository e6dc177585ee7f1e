"""A decoder that takes its process down costs the one image, not the run."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.cluster.progress import PlainReporter
from engine.images import catalog, isolation
from engine.images.inspection import inspect, places_table
from engine.images.isolation import ATTEMPTS, forget_attempts, inspect_isolated, inspect_once
from engine.images.listing import Listing
from engine.images.sources import digits
from engine.spec import validate
from engine.storage.store import open_store
from tests.support.crashing import Crashing

SPEC = validate({"name": "t", "source": {"kind": "digits"}, "images": {"size": 8}})


def places(rows: range) -> pa.Table:
    return places_table(next(Listing(SPEC).groups())).slice(rows.start, len(rows))


def test_isolated_facts_are_the_same_but_for_what_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "TIMEOUT_S", 8.0)
    table = places(range(5))
    made = inspect_isolated(table, {"": Crashing(deadly=[1], endless=[3])}, SPEC.images)
    assert made["reason"].to_pylist() == ["", "killed_decoder", "", "decoder_hang", ""]
    expected = inspect(table, {"": digits.Digits()}, SPEC.images)
    for row in (0, 2, 4):
        assert made.slice(row, 1).equals(expected.slice(row, 1))


def test_the_second_try_is_isolated(tmp_path: Path) -> None:
    store, table, sets = open_store(str(tmp_path)), places(range(3)), {"": Crashing(deadly=[1])}
    store.create(ATTEMPTS + isolation._name(table), b"")
    assert inspect_once(table, sets, SPEC.images, store)["reason"].to_pylist() == ["", "killed_decoder", ""]
    forget_attempts(store)
    assert not list(store.list())
    other = inspect_once(table, {"": digits.Digits()}, SPEC.images, store)
    assert other["reason"].to_pylist() == ["", "", ""]
    assert len(list(store.list(ATTEMPTS))) == 1


def test_on_an_object_store_too_the_second_try_knows_of_the_first(s3_url: str) -> None:
    table, sets = places(range(3)), {"": Crashing(deadly=[1])}
    first = multiprocessing.get_context("spawn").Process(
        target=inspect_once, args=(table, sets, SPEC.images, open_store(s3_url))
    )
    first.start()
    first.join(120)
    assert first.exitcode == 139
    assert inspect_once(table, sets, SPEC.images, open_store(s3_url))["reason"].to_pylist() == [
        "",
        "killed_decoder",
        "",
    ]


def test_a_run_survives(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import engine.images.listing as listing

    monkeypatch.setattr(listing, "open_sets", lambda *args, **more: {"": Crashing(deadly=[1700])})
    monkeypatch.setattr(digits, "GROUP", 32)
    monkeypatch.setattr(catalog, "GROUP", 32)
    store = open_store(str(tmp_path))
    made = catalog.build(SPEC, store, PlainReporter())
    assert made.table.num_rows == 1796
    bad = pq.read_table(store.local(catalog.QUARANTINED)).to_pylist()
    assert [(row["key"], row["reason"]) for row in bad] == [("digits/1700", "killed_decoder")]
    assert not list(store.list(ATTEMPTS))
