"""Samples a second and bytes of memory a sample of the engine with a generator that costs nothing (python -m
benchmarks.null_generator).

Two actors under Ray make shards of 8-pixel samples: plan, requests, gate, provenance, tar, SHA-256, durable publish and
record are the engine's; the sampler gives fixed pixels at once and their JPEG is encoded before. What is left is what
the engine itself costs. The rate is all samples over the time from the first shard's begin to the last one's end;
starting Ray and loading models is not in it. The limit is one process that writes shards of the same files, whose JSON
is made before, with `ShardBuilder` and the same publish. Memory is the resident size of driver and actors late in the
run (psutil): the slope between a short and a long run, each in a fresh process, is what a sample costs. Limit, short
and long run follow each other in turning order; figures are medians over pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import null, pairs
from benchmarks.shard_writing import facts_of
from engine.shards import records
from engine.shards.names import PlanFacts, tar_path
from engine.shards.writer import ShardBuilder
from engine.spec import canonical_json
from engine.storage.store import Store, open_store

ROOT = Path(__file__).parents[1]
ACTORS = 2
SHARD = 1000
LATE = 5  # readings of memory at the end of a run whose median counts
EVERY_S = 0.25


class Memory:
    """Resident bytes of the driver and its actors, read now and then while the block runs."""

    def __init__(self) -> None:
        self.readings: list[dict[str, int]] = []
        self._stop = threading.Event()

    @contextlib.contextmanager
    def read(self) -> Iterator[Memory]:
        """Read in a thread until the block ends."""
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()

    def late(self, part: str) -> float:
        """The median of the last readings that saw all actors."""
        whole = [one[part] for one in self.readings if one["count"] == max(o["count"] for o in self.readings)]
        return statistics.median(whole[-LATE:])

    def _loop(self) -> None:
        import psutil

        driver = psutil.Process(os.getpid())
        while not self._stop.wait(EVERY_S):
            sizes = {"driver": driver.memory_info().rss, "actors": 0, "others": 0, "count": 0}
            for process in driver.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    actor = "NullActor" in " ".join(process.cmdline())
                    sizes["actors" if actor else "others"] += process.memory_info().rss
                    sizes["count"] += actor
            self.readings.append(sizes)


def child(count: int, shard_size: int) -> None:
    """One run in this process; prints its figures as a line of JSON."""
    from engine.cluster.session import session
    from engine.generation import actor_pool
    from tests.support.checkpoints import write_checkpoint
    from tests.support.outputs import prepare
    from tests.support.synthetic import Quiet

    with tempfile.TemporaryDirectory(prefix="null-") as place:
        folder = Path(place)
        spec = null.make_spec(write_checkpoint(folder / "model"), count, shard_size, ACTORS)
        with session(spec.resources):
            output = prepare(folder / "out", spec)
            with mock.patch.object(actor_pool, "ShardActor", null.NullActor), Memory().read() as memory:
                summary = output.generate(Quiet())
        if summary.count != count:
            raise RuntimeError(f"{summary.count} samples of {count}")
        figures = {part: memory.late(part) for part in ("driver", "actors", "others")}
        print(json.dumps({**figures, "rate": rate(output.store, count), "seconds": summary.seconds}))


def rate(store: Store, count: int) -> float:
    """Samples a second from the begin of the first shard to the end of the last."""
    read = [json.loads(store.read(entry.name)) for entry in store.list("data/null-") if entry.name.endswith(".json")]
    return count / (max(one["finished"] for one in read) - min(one["finished"] - one["seconds"] for one in read))


def run(count: int, shard_size: int) -> dict[str, float]:
    """One run in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.null_generator",
        "--child",
        str(count),
        "--shard-size",
        str(shard_size),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def written(count: int, shard_size: int) -> dict[str, float]:
    """The limit: one process writes shards of such files."""
    files = {
        "jpg": null.IMAGE,
        "cls": b"3",
        "json": canonical_json(facts_of(1)).encode(),
        "txt": b"photo of digit 3, best quality",
    }
    with tempfile.TemporaryDirectory(prefix="limit-") as place:
        store, facts = open_store(place), PlanFacts("null", count, shard_size, "5" * 64)
        began = time.perf_counter()
        for k in range(facts.shards):
            builder, (first, planned) = ShardBuilder(), facts.span(k)
            for index in range(first, first + planned):
                builder.add(facts.key(index), files)
            tar = builder.finish()
            store.create(tar_path(facts.shard(k)), tar.pieces)
            records.publish(store, records.make(facts, k, tar, (), "d" * 64))
        return {"rate": count / (time.perf_counter() - began)}


def results(taken: dict[str, list[dict[str, float]]], short: int, long: int) -> list[pairs.Row]:
    """Rates and slopes."""
    rates = {side: [one["rate"] for one in values] for side, values in taken.items()}
    noise = pairs.spread(rates["long"])
    more: dict[str, Any] = {"samples": [short, long], "runs": taken}
    rows = [
        pairs.judged(f"{ACTORS} actors", "samples/s", statistics.median(rates["long"]), noise, 20_000.0, **more),
        pairs.judged(
            f"{ACTORS} actors", "samples/s over one bare writer", pairs.ratio(rates["long"], rates["limit"]), noise, 0.5
        ),
    ]
    for parts in (("driver",), ("actors",), ("driver", "actors")):
        slopes = [
            sum(b[part] - a[part] for part in parts) / (long - short)
            for a, b in zip(taken["short"], taken["long"], strict=True)
        ]
        value = statistics.median(slopes)
        spread = statistics.median(abs(slope - value) for slope in slopes) / (abs(value) or 1.0)
        target = 20.0 if len(parts) == 2 else None
        rows.append(pairs.judged(" + ".join(parts), "bytes of memory a sample", value, spread, target, at_most=True))
    return rows


def main() -> None:
    """Measure, print the table, write the JSON; exit status 1 where a target was missed."""
    parser = pairs.parser(__doc__, pairs=5)
    parser.add_argument(
        "--samples", type=int, nargs=2, default=(100_000, 500_000), help="of the short and the long run"
    )
    parser.add_argument("--shard-size", type=int, default=SHARD)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.shard_size)
        return
    short, long = (2_000, 4_000) if arguments.quick else arguments.samples
    shard = 200 if arguments.quick else arguments.shard_size
    sides = {
        "limit": partial(written, short, shard),
        "short": partial(run, short, shard),
        "long": partial(run, long, shard),
    }
    count, warm = (1, 0) if arguments.quick else (arguments.pairs, 1)
    taken = pairs.alternate(sides, count, warm)
    pairs.finish("null_generator", results(taken, short, long), arguments)


if __name__ == "__main__":
    main()
