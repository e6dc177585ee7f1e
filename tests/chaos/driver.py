"""A driver to be killed: what `mimeo generate` does, on real digits with a random-weight checkpoint (python -m
tests.chaos.driver)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.cluster.session import session
from engine.generation import generation_job
from engine.spec import RunSpec
from engine.storage.claim import claim
from engine.storage.lock import hold
from engine.storage.store import open_store, sweep
from tests.support.outputs import digits_spec, prepare


def make_spec(settings: dict[str, int | str]) -> RunSpec:
    """The run: `count` samples in shards of `shard_size`, drawn by two actors."""
    generate = {"count": settings["count"], "shard_size": settings["shard_size"], "num_inference_steps": 6}
    resources = {"device": "cpu", "actors": 2, "batch_size": 8, "cpus_per_actor": 0.5}
    return digits_spec(Path(str(settings["checkpoint"])), generate, resources=resources)


def main(folder: str, settings: dict[str, int | str]) -> None:
    """Make or go on with the run in `folder`; says "generating" before the first worker starts."""
    spec, store = make_spec(settings), open_store(folder)
    claim(store, spec)
    with hold(store, "chaos"):
        sweep(store)
        if generation_job.is_done(store):
            print("nothing to do", flush=True)
            return
        with session(spec.resources):
            output = prepare(Path(folder), spec)
            print("generating", flush=True)
            if not settings.get("prepare"):
                print(output.generate(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
