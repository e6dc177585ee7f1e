"""Two-worker fine-tunes under Ray Train whose workers are killed with -9: `python -m tests.chaos.match --kills 3`.

Compares the run with an unbroken one: both must end, with the same final loss within 1e-5 (float32 on CPUs).
`--elastic` lets Ray Train go on with one worker; then sums are in another order, and 1e-4 is allowed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from engine.cluster.progress import PlainReporter
from engine.cluster.session import session
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import Store, open_store
from engine.training.matching.matching_run import match
from tests.support import outputs
from tests.support.checkpoints import write_checkpoint
from tests.support.matching import match_spec
from tests.support.outputs import Output, digits_spec

STEPS, EVERY = 240, 20


def workers() -> list[psutil.Process]:
    """Ray Train's workers among this process's descendants."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("RayTrainWorker" in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def newest(store: Store) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(entry.name[-12:-3]) for entry in store.list("checkpoints/match-")), default=0)


def assassin(store: Store, kills: int, done: threading.Event, killed: list[int]) -> None:
    """Kill a random worker each time the training has come a stretch further than at the last kill."""
    random.seed(0)
    for number in range(1, kills + 1):
        wanted = number * STEPS // (kills + 1)
        while newest(store) < wanted or not workers():
            if done.wait(0.02):
                return
        victim = random.choice(workers())
        killed.append(newest(store))
        os.kill(victim.pid, signal.SIGKILL)
        print(f"killed worker {victim.pid} after checkpoint {killed[-1]}", flush=True)
        time.sleep(2)


def run(folder: Path, ready: Output, kills: int, fewest: int | None) -> tuple[float, float, list[int]]:
    """Fine-tune in `folder`; returns the final loss, the seconds, and after which checkpoints workers were killed."""
    spec = match_spec(
        ready.spec, steps=STEPS, checkpoint_every=EVERY, mmd="residual", batch=64, lr=1e-3, precompute=True
    )
    spec = spec.model_copy(update={"resources": ResourcesSpec(device="cpu", train_workers=2, train_workers_min=fewest)})
    store = open_store(str(folder))
    for name in ("conditions/captions.parquet", "conditions/features.parquet", "conditions/classes.parquet"):
        store.create(name, ready.store.read(name))
    done, killed, began = threading.Event(), [], time.monotonic()
    hunter = threading.Thread(target=assassin, args=(store, kills, done, killed))
    hunter.start()
    try:
        assert match(spec, store, ready.checkpoint, ready.catalog, PlainReporter())["done"]
    finally:
        done.set()
        hunter.join()
    final = json.loads(store.read("match/mimeo.json"))["final_loss"]
    return final, time.monotonic() - began, killed


def main() -> int:
    """Print one line of JSON; 1 where the runs differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--elastic", action="store_true")
    arguments = parser.parse_args()
    kills, fewest = arguments.kills, 1 if arguments.elastic else None
    with tempfile.TemporaryDirectory() as name, session(ResourcesSpec(device="cpu"), num_cpus=4):
        folder = Path(name)
        ready = outputs.prepare(folder / "ready", digits_spec(write_checkpoint(folder / "model")))
        unbroken, plain_s, _ = run(folder / "unbroken", ready, 0, None)
        broken, killed_s, killed = run(folder / "killed", ready, kills, fewest)
    difference = abs(broken - unbroken)
    facts = {"kills": len(killed), "after": killed, "final_loss": [unbroken, broken], "difference": difference}
    print(json.dumps(facts | {"seconds": [round(plain_s, 1), round(killed_s, 1)]}))
    return int(len(killed) < kills or difference > (1e-4 if arguments.elastic else 1e-5))


if __name__ == "__main__":
    sys.exit(main())
