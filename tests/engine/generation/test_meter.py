"""The meter of a worker against counters that are set by hand, and against the clock."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.generation import meter as meters
from engine.generation.meter import Meter, cpu_name
from engine.shards import cost
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import open_store

ROOT = Path(__file__).resolve().parents[3]


class Joules:
    """A counter in millijoules that goes up when told."""

    def __init__(self, start: int) -> None:
        self.value = start

    def __call__(self) -> int:
        return self.value


def test_device_time_is_the_clock_times_the_share() -> None:
    for resources, device, share in (
        (ResourcesSpec(threads=4), "cpu", 4),
        (ResourcesSpec(gpus_per_actor=0.25, threads=4), "cuda", 0.25),
    ):
        meter = Meter(resources, device, counters=[])
        start, began = meter.now(), time.monotonic()
        time.sleep(0.05)
        spent = meter.since(start)
        assert 0.05 <= spent.seconds <= time.monotonic() - began + 0.01
        assert spent.device_seconds == pytest.approx(share * spent.seconds)
        assert spent.joules is None


@pytest.mark.parametrize(("share", "joules"), [(1.0, 3.0), (0.5, 1.5)])
def test_energy_of_a_shared_gpu(share: float, joules: float) -> None:
    counter = Joules(123_456)
    meter = Meter(ResourcesSpec(gpus_per_actor=share), "cuda", counters=[counter])
    counter.value += 1000
    start = meter.now()
    counter.value += 3000
    assert meter.since(start).joules == pytest.approx(joules)


def test_energy_of_two_gpus_is_their_sum() -> None:
    counters = [Joules(5), Joules(10**12)]
    meter = Meter(ResourcesSpec(gpus_per_actor=2), "cuda", counters=counters)
    counters[0].value += 1000
    counters[1].value += 2500
    assert meter.now().joules == pytest.approx(3.5)


def test_a_counter_that_fails_never_fails_the_worker() -> None:
    def broken() -> int:
        raise OSError("no counter")

    assert Meter(ResourcesSpec(), "cuda", counters=[broken]).now().joules is None
    counter = Joules(0)
    meter = Meter(ResourcesSpec(), "cuda", counters=[counter])
    start = meter.now()
    counter.value = "lost"  # type: ignore[assignment]
    assert meter.since(start).joules is None


def test_without_a_driver_or_nvml_there_is_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert Meter(ResourcesSpec(), "cuda").now().joules is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters._nvml().__name__.startswith("ray.")
    assert callable(meters._nvml().nvmlDeviceGetTotalEnergyConsumption)


def test_the_usage_file_tells_what_is_in_no_record(tmp_path: Path) -> None:
    store, counter = open_store(tmp_path), Joules(0)
    meter = Meter(ResourcesSpec(gpus_per_actor=0.5), "cuda", store, counters=[counter])
    assert len(cost.usages(store)) == 1  # from the start, so that one that dies while it loads is counted
    start = meter.now()
    time.sleep(0.1)
    counter.value += 8000
    spent = meter.since(start)
    time.sleep(0.02)
    counter.value += 2000
    meter.book(spent)
    meter.close()
    (usage,) = cost.usages(store)
    assert (usage.joules, usage.booked_joules) == (5.0, 4.0)
    assert usage.booked_seconds == pytest.approx(spent.device_seconds, abs=0.001)
    assert usage.unbooked().joules == 1.0
    assert 0.01 <= usage.unbooked().seconds < 0.5 * usage.device_seconds + 5


def test_it_writes_while_the_worker_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "BEAT_S", 0.05)
    store = open_store(tmp_path)
    meter = Meter(ResourcesSpec(), "cpu", store)
    deadline = time.monotonic() + 30
    while cost.usages(store)[0].device_seconds < 0.1 and time.monotonic() < deadline:
        time.sleep(0.02)
    meter.close()
    assert 0.1 <= cost.usages(store)[0].device_seconds < 31


def test_what_a_killed_worker_used_stays_told(tmp_path: Path) -> None:
    code = (
        "import sys, time; from engine.generation import meter; from engine.spec.recipe import ResourcesSpec\n"
        "from engine.storage.store import open_store; meter.BEAT_S = 0.05\n"
        "meter.Meter(ResourcesSpec(threads=3), 'cpu', open_store(sys.argv[1])); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT) as worker:
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                found = cost.usages(open_store(tmp_path))
                if found and found[0].device_seconds > 0.3:
                    break
                time.sleep(0.05)
        finally:
            worker.kill()
    (usage,) = cost.usages(open_store(tmp_path))
    lost = cost.total([], [usage])
    assert lost.other.seconds == usage.device_seconds > 0.3
    assert usage.pid == worker.pid


def test_a_store_that_refuses_never_fails_the_worker(tmp_path: Path) -> None:
    (tmp_path / "usage").write_text("a file where the folder should be")
    meter = Meter(ResourcesSpec(), "cpu", open_store(tmp_path))
    meter.book(meter.now())
    meter.close()


def test_the_processor_has_a_name() -> None:
    assert cpu_name().strip()
