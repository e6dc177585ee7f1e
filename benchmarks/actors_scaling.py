"""What many actors lose to each other and to the driver, on one machine, with devices that sleep (python -m
benchmarks.actors_scaling).

1 to 32 actors, whose sampler sleeps 100 ms a batch (benchmarks/sleeping.py), make shards through the engine's pool,
board, records and manifest. The ideal is the sleep itself. "efficiency" is rate(N) / (N x rate(1)), from the moment
that all actors are there to the last record; "of the sleep" is rate(N) against N sleeping devices. "one slow": eight
actors, one of them three times slower; makespan over the ideal, which is all batches shared out by speed. "driver" is
the CPU time of the driver's process between its first and last record.

"simulated" is not a run: it feeds the driver's own path (pool rows, records, watch, board's snapshots, budget) with the
records of 256 nodes of 8 actors that do not exist. There is no Ray, no process and no network in it, so it is a lower
bound of what a driver pays.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.driver_simulation import simulate
from benchmarks.machine import machine
from benchmarks.pairs import verdict
from benchmarks.sleeping import BARRIER, BATCH_S, SLOW, SleepingActor
from engine.cluster.session import session
from engine.generation import actor_pool, generation_job
from engine.shards.records import Record
from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import Output, prepare

RESULTS = Path(__file__).parent / "results" / "actors_scaling.json"
ACTORS = (1, 2, 4, 8, 16, 32)
TARGET, TARGET_ONE_SLOW, TARGET_DRIVER_MS = 0.95, 1.05, 5.0
BATCH = 16
SIZES = {"batches": 20, "shards": 10, "slow_batches": 4, "slow_seconds": 60.0}
QUICK = {"batches": 2, "shards": 3, "slow_batches": 2, "slow_seconds": 2.0}
SLOWER, SLOW_ACTORS = 3.0, 8


def make_spec(checkpoint: Path, actors: int, shards: int, batches: int) -> RunSpec:
    """A run of so many actors and shards, its images as small as they get."""
    return validate(
        {
            "name": "scaling",
            "source": {"kind": "digits"},
            "images": {"size": 8},
            "split": {"train": 100, "validation": 0, "test": 100},
            "model": {"checkpoint": str(checkpoint)},
            "conditions": {"prompt": "photo of digit {class}"},
            "generate": {
                "count": shards * batches * BATCH,
                "shard_size": batches * BATCH,
                "visual_token": "none",
                "format": "jpg",
            },
            "resources": {"device": "cpu", "actors": actors, "batch_size": BATCH, "cpus_per_actor": 0.05},
        }
    )


class Clock:
    """Stands for `pool.records`: the same records, and the driver's times at each."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self._records = actor_pool.records

    def __call__(self, *arguments: Any) -> Iterator[Record]:
        for record in self._records(*arguments):
            self.cpu.append(time.process_time())
            yield record


def run(ready: Output, actors: int, shards: int, batches: int, slow: bool = False) -> dict[str, Any]:
    """One job in a new output; its makespan and what driver and actors took."""
    with tempfile.TemporaryDirectory(prefix="scaling-") as place:
        store = open_store(place)
        for entry in ready.store.list():
            if entry.name.startswith(("catalog", "conditions")):
                store.create(entry.name, ready.store.read(entry.name))
        if slow:
            Path(place, SLOW).write_text(str(SLOWER))
        spec, clock = make_spec(ready.checkpoint.path, actors, shards, batches), Clock()
        with (
            mock.patch.object(actor_pool, "ShardActor", SleepingActor),
            mock.patch.object(generation_job.actor_pool, "records", clock),
        ):
            dataclasses.replace(ready, spec=spec, store=store).generate()
        records = [json.loads(path.read_text()) for path in Path(place, "data").glob("scaling-*.json")]
        told = [path.read_text().split() for path in Path(place, BARRIER).iterdir()]
    assert len(records) == shards
    assert not any(int(one[1]) for one in told if one), "an actor has imported torch"
    seconds = max(one["finished"] for one in records) - min(one["finished"] - one["seconds"] for one in records)
    images = sum(one["count"] for one in records)
    return {
        "seconds": seconds,
        "rate": images / seconds,
        "of_sleep": shards * batches * BATCH_S / actors / seconds,
        "driver_ms_per_1000": 1e6 * (clock.cpu[-1] - clock.cpu[0]) / (images * (shards - 1) / shards),
        "actor_mib": max(float(one[0]) for one in told if one),
        "used": len({one["pid"] for one in records}),
    }


def scaling(ready: Output, counts: Sequence[int], rounds: int, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """Every number of actors in turning order, `rounds` times."""
    runs: dict[int, list[dict[str, Any]]] = {actors: [] for actors in counts}
    for number in range(rounds):
        for actors in counts if number % 2 == 0 else reversed(counts):
            runs[actors].append(run(ready, actors, sizes["shards"] * actors, sizes["batches"]))
            print(f"{actors} actors, round {number + 1}: {runs[actors][-1]}", file=sys.stderr, flush=True)
    one = [each["rate"] for each in runs[counts[0]]]
    rows = []
    for actors in counts:
        ratio = statistics.median(r["rate"] / (actors / counts[0] * o) for r, o in zip(runs[actors], one, strict=True))
        rates = [each["rate"] for each in runs[actors]]
        spread = statistics.median(abs(b / a - 1) for a, b in itertools.pairwise(rates)) if rounds > 1 else 1.0
        median = {
            key: statistics.median(each[key] for each in runs[actors]) for key in runs[actors][0] if key != "seconds"
        }
        judged = verdict(ratio, spread, TARGET)
        rows.append(
            {"actors": actors, **median, "ratio": ratio, "spread": spread, "verdict": judged, "runs": runs[actors]}
        )
    return rows


def one_slow(ready: Output, rounds: int, actors: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """One actor three times slower than the rest: makespan over all work shared out by speed, and the same with all
    alike."""
    batches = sizes["slow_batches"]
    speeds = {True: (actors - 1 + 1 / SLOWER) / BATCH_S, False: actors / BATCH_S}
    shards = {slow: max(actors, round(sizes["slow_seconds"] * speed / batches)) for slow, speed in speeds.items()}
    ideal = {slow: shards[slow] * batches / speed for slow, speed in speeds.items()}
    runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in range(rounds):
        for slow in (True, False) if number % 2 else (False, True):
            runs[slow].append(run(ready, actors, shards[slow], batches, slow=slow))
    over = {slow: [each["seconds"] / ideal[slow] for each in own] for slow, own in runs.items()}
    spread = statistics.median(abs(b / a - 1) for a, b in itertools.pairwise(over[True])) if rounds > 1 else 1.0
    ratio = statistics.median(over[True])
    judged = verdict(1 / ratio, spread, 1 / TARGET_ONE_SLOW)
    facts = {"actors": actors, "shards": shards[True], "ideal_s": ideal[True], "slower": SLOWER}
    facts |= {"all_alike": statistics.median(over[False]), "runs_all_alike": runs[False]}
    return {**facts, "ratio": ratio, "spread": spread, "target": TARGET_ONE_SLOW, "verdict": judged, "runs": runs[True]}


def table(rows: list[dict[str, Any]], slow: dict[str, Any], simulated: dict[str, Any]) -> str:
    """The results as text."""
    head = (
        f"{'actors':>6} {'images/s':>9} {'efficiency':>10} {'target':>6} {'of sleep':>8} "
        f"{'noise':>6} {'driver ms/1,000':>15} {'MiB/actor':>9}  verdict"
    )
    lines = [
        f"{row['actors']:6d} {row['rate']:9.1f} {row['ratio']:10.3f} {TARGET:6.2f} "
        f"{row['of_sleep']:8.3f} {row['spread']:6.3f} "
        f"{row['driver_ms_per_1000']:15.1f} {row['actor_mib']:9.0f}  {row['verdict']}"
        for row in rows
    ]
    said = (
        f"one of {slow['actors']} actors {SLOWER:g} times slower, {slow['shards']} shards: "
        f"makespan / ideal {slow['ratio']:.3f}, "
        f"target {TARGET_ONE_SLOW}, noise {slow['spread']:.3f}: {slow['verdict']}; with all "
        f"alike {slow['all_alike']:.3f}"
    )
    feigned = (
        f"simulated driver (no Ray, no processes), {simulated['actors']:,} actors, {simulated['records']:,} records: "
        f"{simulated['cpu_us_per_record']:.0f} us of CPU a record, "
        f"{simulated['cpu_ms_per_look']:.1f} ms a look at the board, "
        f"{simulated['bytes_per_record']:.0f} bytes a record, {simulated['grown_mib']:.0f} MiB more than before"
    )
    driver = (
        f"driver: {rows[-1]['driver_ms_per_1000']:.1f} ms of CPU for 1,000 samples at "
        f"most actors, wished for {TARGET_DRIVER_MS:g} (not judged)"
    )
    return "\n".join([head, *lines, driver, said, feigned])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON; exit status 1 where a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--actors", type=int, nargs="+", default=list(ACTORS), help="the first is the unit")
    parser.add_argument("--quick", action="store_true", help="short, to see that it works; writes nothing by itself")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    arguments = parser.parse_args(argv)
    rounds, counts, sizes, several, records = arguments.rounds, arguments.actors, SIZES, SLOW_ACTORS, 100_000
    if arguments.quick:
        rounds, counts, sizes, several, records = 1, [1, 2], QUICK, 2, 5000
    most = max(*counts, several)
    simulated = simulate(256, 8, records)
    with tempfile.TemporaryDirectory(prefix="scaling-") as place:
        checkpoint = write_checkpoint(Path(place) / "model")
        spec = make_spec(checkpoint, most, most, 1)
        with session(spec.resources, num_cpus=4):
            ready = prepare(Path(place) / "out", spec)
            rows = scaling(ready, counts, rounds, sizes)
            slow = one_slow(ready, rounds, several, sizes)
            facts = machine("actors_scaling")
    print(table(rows, slow, simulated))
    out = arguments.out or (None if arguments.quick else RESULTS)
    if out:
        out.parent.mkdir(exist_ok=True)
        named = [{"case": f"{row['actors']} actors", **row} for row in rows]
        named += [{"case": "one slow", **slow}, {"case": "simulated driver", **simulated}]
        results = {"machine": facts, "results": named}
        out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(rows[-1]["verdict"] == "missed" or slow["verdict"] == "missed")


if __name__ == "__main__":
    main()
