"""Cost by hand: made-up records and usage files against numbers that were added up on paper."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engine.shards import cost
from engine.shards.cost import Amount, Usage
from engine.shards.names import PLAN, PlanFacts, record_path
from engine.shards.records import Record
from engine.shards.shard_status import status
from engine.storage.store import Store, open_store
from tests.support.sealed import publish_shard

FACTS = PlanFacts("toy", 40, 10, "h")
GPU = "NVIDIA H100"
USAGE = Usage("n1", 7, "cuda", GPU, 5400.0, 3600.0, 1_080_000.0, 720_000.0, 1.7e9)


def record(k: int, count: int, seconds: float | None, joules: float | None, drawn: int | None) -> Record:
    """Shard k with `count` of 10 samples."""
    made = Record(f"toy-{k:06d}", k, 10 * k, 10, count, 1, "", "", seconds=99.0, device="cuda")
    name = None if seconds is None else GPU
    return replace(made, device_name=name, device_seconds=seconds, joules=joules, drawn=drawn)


RECORDS = [record(0, 10, 1200.0, 240_000.0, 10), record(1, 8, 2400.0, 480_000.0, 16)]


def test_sums_by_hand() -> None:
    found = cost.total(RECORDS, [USAGE])
    assert (found.shards, found.planned, found.accepted, found.drawn) == (2, 20, 18, 26)
    assert found.finished == Amount(3600.0, 720_000.0, 3600.0)
    assert found.other == Amount(1800.0, 360_000.0, 1800.0)
    assert found.hours == 1.5
    assert found.unit == "GPU"
    assert found.accepted_per_hour == 12.0
    assert found.kwh == 0.3
    assert found.per_1000(2.4) == pytest.approx(2.4 * 1.5 / 18 * 1000)
    assert found.per_1000(0.0) == 0.0
    assert found.per_1000(None) is None
    assert found.devices == {("cuda", GPU): 5400.0}


def test_samples_that_failed_the_gate_and_lost_work_make_images_dearer() -> None:
    clean = cost.total([record(0, 10, 1200.0, None, 10)], [])
    failed = cost.total([record(0, 5, 1200.0, None, 25)], [])
    lost = cost.total([record(0, 10, 1200.0, None, 10)], [replace(USAGE, device_seconds=1200.0, booked_seconds=0.0)])
    price = clean.per_1000(3.0)
    assert price == pytest.approx(100.0)
    assert failed.per_1000(3.0) == pytest.approx(200.0)
    assert lost.per_1000(3.0) == pytest.approx(200.0)


def test_shards_that_were_removed_and_made_again_are_paid_twice() -> None:
    first, second = (
        replace(USAGE, device_seconds=s, booked_seconds=s, joules=200 * s, booked_joules=200 * s)
        for s in (3600.0, 1200.0)
    )
    found = cost.total(
        RECORDS, [first, second]
    )  # one of the first worker's shards, of 1,200 s, is gone; the second made it again
    assert (found.accepted, found.finished.seconds, found.other) == (18, 3600.0, Amount(1200.0, 240_000.0, 1200.0))
    assert cost.total(RECORDS, [second]).other == Amount()  # a usage file that was lost takes nothing from the records


def test_lines_for_a_person() -> None:
    lines = dict(cost.total(RECORDS, [USAGE]).lines(2.4))
    assert lines == {
        "device time": f"1.5 GPU-hours ({GPU})",
        "of which": "1 in finished shards, 0.5 loading, waiting, lost or unfinished",
        "accepted": "18 of 26 drawn, 69.2 %",
        "yield": "12 accepted images a GPU-hour",
        "energy": "0.3 kWh, 16.7 kWh per 1,000 accepted images",
        "price": "200 per 1,000 accepted images; 3.6 in all, at 2.4 a GPU-hour",
    }
    assert "price" not in dict(cost.total(RECORDS, [USAGE]).lines())
    assert cost.total([], []).lines(2.4) == []


def test_records_of_an_older_engine_are_named_and_left_out() -> None:
    found = cost.total([*RECORDS, record(2, 10, None, None, None)], [], unknown=1)
    assert (found.shards, found.unknown, found.accepted) == (2, 2, 18)
    assert found.hours == 1.0
    assert dict(found.lines())["cost not known"].startswith("of 2 further shards")


def test_energy_that_was_measured_in_part_says_so() -> None:
    found = cost.total([record(0, 10, 1800.0, 360_000.0, 10), record(1, 10, 5400.0, None, 10)], [])
    assert found.total.measured == 0.25
    assert dict(found.lines())["energy"] == "0.1 kWh, measured over 25 % of the device time"
    assert found.ahead(10).metered == 0.0
    nowhere = cost.total([record(1, 10, 5400.0, None, 10)], [])
    assert nowhere.kwh is None
    assert "energy" not in dict(nowhere.lines())


def test_what_is_left_goes_by_planned_samples_of_finished_shards() -> None:
    need = cost.total(RECORDS, [USAGE]).ahead(100)
    assert (need.seconds, need.joules) == (3600.0 * 5, 720_000.0 * 5)
    assert cost.total([], []).ahead(100) == Amount()


def test_two_kinds_of_device_are_kept_apart() -> None:
    core = replace(RECORDS[0], device="cpu", device_name="Xeon", joules=None)
    found = cost.total([core, RECORDS[1]], [])
    assert found.unit == "device"
    assert found.to_json()["devices"] == {"Xeon": pytest.approx(1 / 3), GPU: pytest.approx(2 / 3)}


def test_plain_data_is_json() -> None:
    data = json.loads(json.dumps(cost.total(RECORDS, [USAGE]).to_json(2.4), allow_nan=False))
    assert (data["device_hours"], data["device_hours_in_shards"], data["device_hours_beside"]) == (1.5, 1.0, 0.5)
    assert (data["energy_kwh"], data["price_per_1000_accepted"]) == (0.3, pytest.approx(200.0))
    empty = cost.total([], []).to_json(2.4)
    assert (empty["device_hours"], empty["accepted_per_device_hour"], empty["price_per_1000_accepted"]) == (
        0,
        None,
        None,
    )


def test_usage_files_and_back() -> None:
    assert Usage.from_json(USAGE.to_json()) == USAGE
    plain = replace(USAGE, joules=None)
    assert Usage.from_json(plain.to_json()) == plain
    assert plain.unbooked() == Amount(1800.0)


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, USAGE.to_json().replace(b"5400.0", b'"x"')]
)
def test_torn_usage_files_count_for_nothing(text: bytes) -> None:
    assert Usage.from_json(text) is None


def test_status_of_an_output(tmp_path: Path) -> None:
    store: Store = open_store(tmp_path / "out")
    store.create(PLAN, json.dumps(FACTS.to_json()).encode())
    how = {"device": "cuda", "device_name": GPU, "joules": 720_000.0}
    publish_shard(store, FACTS, 0, (), device_seconds=3600.0, drawn=10, **how)
    publish_shard(store, FACTS, 1, (11, 12), device_seconds=3600.0, drawn=16, **how)
    publish_shard(store, FACTS, 2)  # as an older engine notes it
    publish_shard(store, FACTS, 3, device_seconds=1.0)
    store.replace(record_path("toy-000003"), b"{")
    store.create("usage/aa.json", USAGE.to_json())
    store.create("usage/bb.json", b"torn")
    lines = dict(status(store).lines(2.5))
    assert lines["samples"] == "38 of 40, 2 quarantined"
    assert lines["device time"] == f"2.5 GPU-hours ({GPU})"
    assert lines["accepted"] == "18 of 26 drawn, 69.2 %"
    assert lines["energy"] == "0.5 kWh, 27.8 kWh per 1,000 accepted images"
    assert lines["price"] == "347 per 1,000 accepted images; 6.25 in all, at 2.5 a GPU-hour"
    assert lines["cost not known"].startswith("of 2 further shards")
    assert cost.gather(store, FACTS) == status(store).cost
