"""MB a second that `mimeo verify` checks, against reading and hashing the same bytes (python -m
benchmarks.verify_rate).

A sealed output of shards as runs write them is checked by `engine.shards.verification`, which reads every tar, record,
index and table. The other sides read the same tars in pieces of 4 MiB into `hashlib.sha256`: "threads" in as many
threads as verification has, the limit; "one thread" as `sha256sum` does it. All run in one process, one after another,
in turning order, with the files in the page
cache: it is the work that is compared, not the disk. Ratios are medians over pairs.
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import pairs
from benchmarks.shard_writing import samples
from engine.shards import manifest, records
from engine.shards.names import PLAN, PlanFacts, tar_path
from engine.shards.seal import CHUNK
from engine.shards.verification import verify
from engine.shards.writer import ShardBuilder
from engine.spec import canonical_json
from engine.storage.store import Store, open_store

THREADS = 4
CASES: dict[str, dict[str, Any]] = {
    "62 KB": {"bytes": 62_000, "samples": 1000, "shards": 8},
    "1.5 KB": {"bytes": 1_500, "samples": 1000, "shards": 60},
}
TARGET = 0.9


def output(folder: Path, case: dict[str, Any]) -> Store:
    """A sealed output; its shards differ in their keys alone."""
    store, size = open_store(folder), case["samples"]
    facts = PlanFacts("bench", size * case["shards"], size, "5" * 64)
    store.create(PLAN, canonical_json(facts.to_json()).encode())
    given = samples(case["bytes"], size)
    for k in range(facts.shards):
        builder = ShardBuilder()
        for number, (_, files) in enumerate(given):
            builder.add(facts.key(k * size + number), files)
        tar = builder.finish()
        store.create(tar_path(facts.shard(k)), tar.pieces)
        records.publish(store, records.make(facts, k, tar, (), "d" * 64))
    manifest.finalise(store, facts)
    return store


def verified(store: Store) -> None:
    """Check the output as the verb does."""
    assert not verify(store).faults


def hashed(tars: list[Path], threads: int) -> None:
    """Read and hash the tars."""

    def one(path: Path) -> str:
        found = hashlib.sha256()
        with path.open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK):
                found.update(chunk)
        return found.hexdigest()

    with ThreadPoolExecutor(threads) as pool:
        if not all(pool.map(one, tars)):
            raise RuntimeError("no digest")


def timed(run: Callable[[], None]) -> float:
    """Wall seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(name: str, case: dict[str, Any], count: int, place: Path) -> list[pairs.Row]:
    """One output."""
    store = output(place, case)
    tars = sorted((place / "data").glob("*.tar"))
    total = sum(path.stat().st_size for path in tars)
    seconds = pairs.alternate(
        {
            "verify": partial(timed, partial(verified, store)),
            "threads": partial(timed, partial(hashed, tars, THREADS)),
            "one thread": partial(timed, partial(hashed, tars, 1)),
        },
        count,
    )
    more = {
        "bytes": total,
        "mb_per_s": {side: total / 1e6 / statistics.median(values) for side, values in seconds.items()},
        "seconds": seconds,
    }
    limit, single = (pairs.ratio(seconds[side], seconds["verify"]) for side in ("threads", "one thread"))
    noise = {side: pairs.spread(values) for side, values in seconds.items()}
    return [
        pairs.judged(name, f"MB/s over SHA-256 in {THREADS} threads", limit, noise["threads"], TARGET, **more),
        pairs.judged(name, "MB/s over SHA-256 in one thread", single, noise["one thread"], None),
    ]


def main() -> None:
    """Measure, print the table, write the JSON; exit status 1 where a target was missed."""
    parser = pairs.parser(__doc__, pairs=9)
    parser.add_argument("--folder", type=Path, help="where to write the outputs")
    arguments = parser.parse_args()
    rows = []
    for name, case in CASES.items():
        chosen = {**case, "samples": 20, "shards": 3} if arguments.quick else case
        with tempfile.TemporaryDirectory(prefix="verify-", dir=arguments.folder) as place:
            rows += measure(name, chosen, 2 if arguments.quick else arguments.pairs, Path(place))
    pairs.finish("verify_rate", rows, arguments)


if __name__ == "__main__":
    main()
