"""Seconds from the start of `mimeo generate` to the first new sample, cold and with up to 1e6 samples done (python -m
benchmarks.resume).

Every start is the verb in a fresh process: imports, Ray, checkpoint, plan, what is published already, actor, first
durable shard (by the time in its record). The generator costs nothing (`benchmarks/null.py`), so that nothing hides
what a resume adds; catalog and conditions are there in both arms. "cold" has two shards to make and none done; the
others have the same two left after 1,000 samples in each of the shards that are done: tars with the planned keys (of
one small member each, since a resume reads none) and records with the digests of the plan. What was made is removed
after each start. The arms follow each other in turning order; ratios are medians over pairs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import null, pairs
from engine.generation.sample_plan import Plan
from engine.shards import manifest, records
from engine.shards.names import DATA, PlanFacts, record_path, tar_path
from engine.shards.writer import ShardBuilder
from engine.spec import spec_hash
from engine.storage.claim import to_yaml
from engine.storage.store import open_store

ROOT = Path(__file__).parents[1]
LEFT = 2  # shards that each start has to make
SIZES = (100_000, 1_000_000)
TARGET = 1.05


def child(recipe: str, output: str) -> None:
    """The verb in this process, with the null generator in its actors."""
    from unittest import mock

    from engine.generation import actor_pool
    from pipelines.cli import execute

    with mock.patch.object(actor_pool, "ShardActor", null.NullActor):
        sys.exit(execute(["generate", recipe, "--output", output]))


class Arm:
    """An output in which so many samples are done."""

    def __init__(self, folder: Path, checkpoint: Path, done: int, shard: int) -> None:
        from tests.support.outputs import prepare

        self.folder, self.done = folder, done // shard
        spec = null.make_spec(checkpoint, (self.done + LEFT) * shard, shard, actors=1)
        self.recipe = folder / "recipe.yaml"
        folder.mkdir()
        self.recipe.write_text(to_yaml(spec))
        self.output = prepare(folder / "out", spec)
        self.facts = PlanFacts(spec.name, spec.generate.count, shard, spec_hash(spec))
        self._fill()

    def _fill(self) -> None:
        """Publish the shards that are done."""
        conditions, store = self.output.conditions, self.output.store
        plan = Plan(self.output.spec, conditions.labels, conditions.class_names)
        for k in range(self.done):
            builder, (first, stop) = ShardBuilder(), plan.shard(k)
            for index in range(first, stop):
                builder.add(self.facts.key(index), {"cls": b"3"})
            tar = builder.finish()
            digest = plan.digest(first, stop, conditions.keys, conditions.prompts)
            store.create(tar_path(self.facts.shard(k)), tar.pieces)
            records.publish(store, records.make(self.facts, k, tar, (), digest, attempt=1, seconds=1.0, device="cpu"))

    def start(self) -> float:
        """Seconds to the first new sample; leaves the output as it was."""
        arguments = ["--child", str(self.recipe), str(self.folder / "out")]
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.resume", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr[-2000:]}")
        store = open_store(self.folder / "out")
        new = [self.facts.shard(k) for k in range(self.done, self.done + LEFT)]
        finished = [json.loads(store.read(record_path(shard)))["finished"] for shard in new]
        sealed = manifest.load(store).seal
        if sealed.samples != self.facts.count or min(finished) < began:
            raise RuntimeError("the resumed run did not make what was left")
        for name in [*map(tar_path, new), *map(record_path, new), *sealed.files, manifest.SEAL]:
            store.remove(name)
        if not any(store.list(f"{DATA}/")) and self.done:
            raise RuntimeError("the shards that were done are gone")
        return min(finished) - began


def prepared(folder: Path, sizes: tuple[int, ...], shard: int) -> dict[str, Arm]:
    """The outputs of all arms, made inside one session that has ended before any clock runs."""
    from engine.cluster.session import session
    from tests.support.checkpoints import write_checkpoint

    checkpoint = write_checkpoint(folder / "model")
    with session(null.make_spec(checkpoint, shard, shard, actors=1).resources):
        return {
            f"{done:,} done" if done else "cold": Arm(folder / f"arm-{done}", checkpoint, done, shard)
            for done in (0, *sizes)
        }


def results(seconds: dict[str, list[float]], arms: dict[str, Arm]) -> list[pairs.Row]:
    """Ratios to the cold start, and what a finished shard adds."""
    noise, rows = pairs.spread(seconds["cold"]), []
    cold = statistics.median(seconds["cold"])
    rows.append(pairs.judged("cold", "seconds to the first sample", cold, noise, None, seconds=seconds["cold"]))
    for name, arm in arms.items():
        if name == "cold":
            continue
        more: dict[str, Any] = {"at_most": True, "shards": arm.done, "seconds": seconds[name]}
        rows.append(
            pairs.judged(name, "over a cold start", pairs.ratio(seconds[name], seconds["cold"]), noise, TARGET, **more)
        )
        added = statistics.median(b - a for a, b in zip(seconds["cold"], seconds[name], strict=True)) / arm.done
        slack = noise * cold / arm.done / (abs(added * 1e3) or 1.0) * 1e3
        rows.append(pairs.judged(name, "ms that a finished shard adds", 1e3 * added, slack, None, at_most=True))
    return rows


def main() -> None:
    """Measure, print the table, write the JSON; exit status 1 where a target was missed."""
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    parser = pairs.parser(__doc__, pairs=7)
    parser.add_argument("--samples", type=int, nargs="+", default=SIZES, help="that are done, of each arm")
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="where to write the outputs (2 GB)")
    arguments = parser.parse_args()
    sizes, shard = tuple(arguments.samples), arguments.shard_size
    if arguments.quick:
        sizes, shard = (400,), 100
    with tempfile.TemporaryDirectory(prefix="resume-", dir=arguments.folder) as place:
        arms = prepared(Path(place), sizes, shard)
        count, warm = (1, 0) if arguments.quick else (arguments.pairs, 1)
        seconds = pairs.alternate({name: arm.start for name, arm in arms.items()}, count, warm)
        rows = results(seconds, arms)
    pairs.finish("resume", rows, arguments)


if __name__ == "__main__":
    main()
