"""How much of a generating actor's time is the model's, and where the rest goes (python -m benchmarks.profile).

One actor of one thread makes half-second batches. Timers (`perf_counter`) are put around the pipeline's call and the
VAE, which are "the model" (diffusers' own Python inside of the call belongs to it), and around the engine's other steps
in the actor's device thread. The wall time is all of it from the end of the first shard's drawing, which warms up, to
the end of the last one's: what is not inside a timer is waiting for the encoder's thread, or Python between the steps.
The share is judged over shards; its noise is how far that of one shard differs from that of the next. "Safety" is what
the actor spends on checking images and, beside the drawing, on a shard that is whole or absent (tar, digest, fsync,
exclusive publish, record): more than safety alone, since a plain script writes its files too.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import pairs
from benchmarks.generation_overhead import CASES, QUICK, make_spec, steps_for_half_a_second
from benchmarks.machine import machine
from engine.cluster.session import session
from engine.generation import actor_pool
from engine.generation.actor import Order, ShardActor
from engine.generation.generation_worker import Shard
from tests.support.checkpoints import write_checkpoint
from tests.support.outputs import prepare

TARGET, SAFETY_TARGET = 0.97, 0.03
MODEL = ("pipeline", "vae")
SAFETY = ("gate", "publish")
PARTS = {
    "pipeline": "the pipeline's call: denoising",
    "vae": "the VAE, decoding and encoding",
    "around the model": "prompts, random generators, quantising, copying to the host",
    "requests": "what is asked of the sampler",
    "gate": "checking each image",
    "gap": "between two shards: waiting for the next one",
    "other": "waiting for the encoder's thread, Python between the steps",
}
BESIDE = {
    "plan": "the next shard's planned samples: in another thread",
    "publish": "tar, digest, fsync, record, of the shard before: in another thread",
}


class Timers:
    """Seconds by name; `around` wraps a function."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def taken(self) -> dict[str, float]:
        """The seconds since this was called last."""
        spent, self.seconds = self.seconds, Counter()
        return dict(spent)

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added to `name`."""

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timed


class Called:
    """A pipeline whose call is timed; everything else is the pipeline's."""

    def __init__(self, pipeline: Any, timers: Timers) -> None:
        self._pipeline, self._call = pipeline, timers.around("pipeline", pipeline.__call__)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._call(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)


class ProfiledActor(ShardActor):
    """Writes what each shard's time went to, a line a shard."""

    def __init__(self, order: Order, board: Any = None) -> None:
        super().__init__(order, board)
        self._timers = timers = Timers()
        worker = self._worker
        sampler: Any = worker.sampler
        vae = sampler.pipeline.vae
        vae.decode, vae.encode = timers.around("vae", vae.decode), timers.around("vae", vae.encode)
        sampler.pipeline = Called(sampler.pipeline, timers)
        sampler.draw = timers.around("draw", sampler.draw)
        worker.requests.make = timers.around("requests", worker.requests.make)  # type: ignore[method-assign]
        for name, method in (("gate", "_pass"), ("plan", "prepare"), ("publish", "_publish")):
            setattr(worker, method, timers.around(name, getattr(worker, method)))
        self._ended = time.perf_counter()

    def _draw(self, shard: Shard) -> None:
        began = time.perf_counter()
        super()._draw(shard)
        now, spent = time.perf_counter(), self._timers.taken()
        line = {**spent, "gap": began - self._ended, "wall": now - self._ended}
        with Path(self._order.url, "profile.jsonl").open("a") as out:
            out.write(json.dumps(line) + "\n")
        self._ended = now


def parts(spent: dict[str, float]) -> dict[str, float]:
    """Seconds of one shard by part; those of `PARTS` add up to its wall time."""
    found = {name: spent.get(name, 0.0) for name in (*PARTS, *BESIDE)}
    found["around the model"] = spent["draw"] - spent["pipeline"] - spent["vae"]
    found["other"] = spent["wall"] - sum(found[name] for name in PARTS if name != "other")
    return found


def measure(case: dict[str, Any], shards: int) -> dict[str, Any]:
    """Run the case, inside a session; the share of the model and of each other part."""
    with tempfile.TemporaryDirectory(prefix="profile-") as place:
        folder = Path(place)
        checkpoint = write_checkpoint(folder / "model", case["family"], **case["changes"])
        case = {**case, "steps": case["steps"] or steps_for_half_a_second(checkpoint, case)}
        output = prepare(folder / "out", make_spec(case, checkpoint, shards))
        with mock.patch.object(actor_pool, "ShardActor", ProfiledActor):
            output.generate()
        lines = (folder / "out" / "profile.jsonl").read_text().splitlines()
    return result(case, [json.loads(line) for line in lines][1:])


def share_of(names: Sequence[str], every: list[dict[str, float]], spent: list[dict[str, float]]) -> tuple[float, float]:
    """The share of these parts in the wall time of all shards, and how far it differs between a shard and the next."""
    each = [sum(one[name] for name in names) / line["wall"] for one, line in zip(every, spent, strict=True)]
    share = sum(one[name] for one in every for name in names) / sum(line["wall"] for line in spent)
    return share, statistics.median(abs(b - a) for a, b in itertools.pairwise(each)) if len(each) > 1 else 1.0


def result(case: dict[str, Any], spent: list[dict[str, float]]) -> dict[str, Any]:
    """Shares of the wall time of all shards, and the verdict on the model's."""
    wall = sum(one["wall"] for one in spent)
    every = [parts(one) for one in spent]
    shares = {name: sum(one[name] for one in every) / wall for name in (*PARTS, *BESIDE)}
    share, spread = share_of(MODEL, every, spent)
    safety, safety_spread = share_of(SAFETY, every, spent)
    return {
        "case": "half a second",
        "batch": case["batch"],
        "steps": case["steps"],
        "shards": len(spent),
        "seconds_a_batch": wall / len(spent) / case["batches"],
        "share": share,
        "spread": spread,
        "target": TARGET,
        "verdict": pairs.verdict(share, spread, TARGET),
        "safety": safety,
        "safety_spread": safety_spread,
        "safety_target": SAFETY_TARGET,
        "safety_verdict": pairs.verdict(safety, safety_spread, SAFETY_TARGET, at_most=True),
        "shares": shares,
        "seconds": spent,
    }


def table(row: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"{name:17} {100 * row['shares'][name]:7.2f} %  "
        f"{1e3 * row['shares'][name] * row['seconds_a_batch']:8.2f} ms a batch  {what}"
        for name, what in (PARTS | BESIDE).items()
    ]
    said = (
        f"inside the model {100 * row['share']:.2f} % of {row['shards']} shards, batches of {row['batch']} in "
        f"{row['seconds_a_batch']:.3f} s; target {100 * row['target']:.0f} %, noise "
        f"{100 * row['spread']:.2f}: {row['verdict']}"
    )
    safety = (
        f"safety {100 * row['safety']:.2f} %; target at most {100 * row['safety_target']:.0f} %, "
        f"noise {100 * row['safety_spread']:.2f}: {row['safety_verdict']}"
    )
    return "\n".join([*lines, said, safety])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, write the JSON; exit status 1 where the target was missed."""
    parser = pairs.parser(__doc__)
    parser.add_argument("--shards", type=int, default=12)
    arguments = parser.parse_args(argv)
    case, shards = CASES["half a second"], arguments.shards
    if arguments.quick:
        case, shards = case | QUICK, 2
    with session(make_spec({**case, "steps": 1}, Path("/none"), 1).resources):
        row, facts = measure(case, shards), machine("profile")
    pairs.finish("profile", [row], arguments, facts, table(row))


if __name__ == "__main__":
    main()
