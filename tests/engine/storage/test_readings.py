"""The ledger of test readings: what is written stays, a command that goes on repeats nothing, the sentence counts."""

from __future__ import annotations

from pathlib import Path

from engine.storage import readings
from engine.storage.store import open_store


def test_readings_are_kept_and_counted_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert readings.sentence(readings.readings(store)) == "The test split was not read."
    readings.note(store, "judge", "judge", ["real", "synthetic_1x", "real"], ["real-0", "real-1", "synthetic_1x-0"], 90)
    first = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert len(first) == 1
    assert (
        readings.sentence(readings.readings(store)) == "The test split was read once: by judge (2 arms, 3 classifiers)."
    )
    readings.note(store, "judge", "judge", ["real"], ["real-1"], 90)  # a command that goes on
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == first
    readings.note(store, "judge", "judge", ["real"], ["real-1", "real-2"], 90)  # one that asks for more
    readings.note(store, "search", "chosen", ["0x", "2x"], ["0x/0-0", "2x/0-0"], 90)
    found = readings.readings(store)
    assert sorted(len(one["classifiers"]) for one in found) == [1, 2, 3]
    text = readings.sentence(found)
    assert text.startswith("The test split was read 3 times: ")
    assert "by search, chosen (2 arms, 2 classifiers)" in text
    assert all(path.read_bytes() == data for path, data in first.items())


def test_two_processes_that_say_the_same_write_once(tmp_path: Path) -> None:
    stores = [open_store(str(tmp_path)) for _ in range(2)]
    for store in stores:
        readings.note(store, "train", "train", ["real"], ["a", "b"], 10)
    assert len(readings.readings(stores[0])) == 1
