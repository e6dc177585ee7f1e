"""Nanoseconds a planned row, and time and memory to open plans of up to 1e9 samples (python -m benchmarks.planning).

"enumerate": `Plan.rows` over stretches of 100,000 rows, in ns of CPU time a row, against the plan that a script makes:
one table in memory of as many rows (NumPy: a new order of the images for each version, random seeds, classes and a
partner of the class looked up). "open": a fresh process opens a plan and reads 1,000 rows at random places, one at a
time; its clock starts after the imports, its memory is the peak of the whole process (VmHWM). Processes of all sizes
run one after another, in turning order. What must not grow is the time at 1e9 samples over that at 1e6. Ratios are
medians over pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pairs
from engine.generation.sample_plan import Plan
from engine.spec import validate

IMAGES = 50_000
CLASSES = 10
SIZES = (10**4, 10**6, 10**8, 10**9)
READS = 1000
STRETCH = 100_000


def make(count: int, **generate: str) -> Plan:
    """A plan of `count` samples over 50,000 training images; `generate` says what else than the defaults is planned."""
    generate = {"count": count, "shard_size": 1000, **generate}
    spec = validate({"name": "planning", "source": {"kind": "digits"}, "generate": generate})
    labels = np.random.default_rng(0).integers(0, CLASSES, IMAGES).astype(np.int32)
    return Plan(spec, labels, [str(number) for number in range(CLASSES)])


def enumerated(plan: Plan, rows: int) -> float:
    """ns a row of the lazy plan."""
    began = time.process_time()
    for first in range(0, rows, STRETCH):
        plan.rows(first, min(rows, first + STRETCH))
    return (time.process_time() - began) / rows * 1e9


def materialised(plan: Plan, rows: int) -> float:
    """ns a row of a table of the same columns in memory."""
    began, chance = time.process_time(), np.random.default_rng(0)
    versions = [chance.permutation(len(plan.labels)) for _ in range(-(-rows // len(plan.labels)))]
    anchor = np.concatenate(versions)[:rows]
    label = plan.labels[anchor]
    seed = chance.integers(0, 2**63, rows, dtype=np.uint64)
    token = np.empty(rows, np.int64) if plan.spec.generate.visual_token == "class" else anchor
    for number in range(CLASSES) if token is not anchor else ():
        members, mine = np.flatnonzero(plan.labels == number), np.flatnonzero(label == number)
        token[mine] = members[chance.integers(0, len(members), len(mine))]
    table = {"index": np.arange(rows), "label": label, "anchor": anchor, "token": token, "init": anchor, "seed": seed}
    if len(table) != 6 or any(len(column) != rows for column in table.values()):
        raise RuntimeError("the table is not whole")
    return (time.process_time() - began) / rows * 1e9


def opened(count: int) -> dict[str, float]:
    """What a fresh process says of a plan of so many samples."""
    command = [sys.executable, "-m", "benchmarks.planning", "--child", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    return json.loads(done.stdout)


def child(count: int) -> None:
    """Open a plan, read rows of it, print seconds (CPU) and the peak memory of this process in MiB."""
    places = random.Random(0)
    make(10**4).rows(0, 1)  # what the first use of libraries costs is none of the plan's
    before = peak_mib()
    began = time.process_time()
    plan = make(count)
    opening = time.process_time() - began
    for _ in range(READS):
        index = places.randrange(count)
        if plan.rows(index, index + 1).index[0] != index:
            raise RuntimeError("the plan gives another row than was asked for")
    seconds = time.process_time() - began
    print(json.dumps({"open_s": opening, "seconds": seconds, "peak_mib": peak_mib(), "grown_mib": peak_mib() - before}))


def peak_mib() -> float:
    """The peak resident memory of this process, in MiB (what `getrusage` says may be the parent's)."""
    status = Path("/proc/self/status")
    if status.exists() and (match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(match[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def rows_cost(name: str, plan: Plan, rows: int, count: int, target: float | None = 100.0) -> list[pairs.Row]:
    """The cost of enumerating a plan, alone and against the table."""
    taken = pairs.alternate(
        {"lazy": partial(enumerated, plan, rows), "table": partial(materialised, plan, rows)}, count
    )
    noise, lazy = pairs.spread(taken["lazy"]), statistics.median(taken["lazy"])
    ratio = pairs.ratio(taken["table"], taken["lazy"])
    return [
        pairs.judged(name, "ns a row, enumerated", lazy, noise, target, at_most=True, rows=rows, ns_a_row=taken),
        pairs.judged(name, "rows/s over a NumPy table in memory", ratio, noise, None),
    ]


def growth(count: int) -> list[pairs.Row]:
    """Time and memory of fresh processes over the sizes of plans."""
    sizes = {f"{size:.0e}": size for size in SIZES}
    taken: dict[str, list[dict[str, float]]] = pairs.alternate(
        {name: partial(opened, size) for name, size in sizes.items()}, count, warm=0
    )
    seconds = {name: [one["seconds"] for one in values] for name, values in taken.items()}
    noise = pairs.spread(seconds["1e+06"])
    rows = [
        pairs.judged(
            name,
            "us a row, read at random",
            statistics.median(values) / READS * 1e6,
            pairs.spread(values),
            None,
            at_most=True,
            open_ms=1e3 * statistics.median(one["open_s"] for one in taken[name]),
            peak_mib=statistics.median(one["peak_mib"] for one in taken[name]),
            seconds=values,
        )
        for name, values in seconds.items()
    ]
    flat = pairs.ratio(seconds["1e+09"], seconds["1e+06"])
    grown = statistics.median(one["grown_mib"] for one in taken["1e+09"])
    more: dict[str, Any] = {"at_most": True}
    return [
        *rows,
        pairs.judged("1e9 over 1e6", "time to open and read", flat, noise, 1.2, **more),
        pairs.judged("1e9", "MiB of memory for the plan", grown, 0.0, 100.0, **more),
    ]


def main() -> None:
    """Measure, print the table, write the JSON; exit status 1 where a target was missed."""
    parser = pairs.parser(__doc__, pairs=7)
    parser.add_argument("--rows", type=int, default=2_000_000, help="rows to enumerate")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    count = 2 if arguments.quick else arguments.pairs
    rows = STRETCH // 2 if arguments.quick else arguments.rows
    dearest = {"classes": "balanced", "visual_token": "class", "pairing": "class"}
    results = rows_cost("defaults", make(10**9), rows, count)
    results += rows_cost("balanced, of the class", make(10**9, **dearest), rows, count, target=None)
    pairs.finish("planning", results + growth(1 if arguments.quick else count), arguments)


if __name__ == "__main__":
    main()
