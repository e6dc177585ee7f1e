"""`mimeo status`: what a run has done, from its records alone."""

from __future__ import annotations

from rich.table import Table

from engine.cluster.terminal import Terminal, say
from engine.storage.claim import read_spec
from engine.storage.store import open_store
from pipelines.options import Price, Url


def main(url: Url, price_per_hour: Price = None) -> None:
    """Say what a run has done so far, whether it is still running, what is left, and what the images have cost."""
    from engine.cluster.progress import PlainReporter
    from engine.run.stages import Run
    from engine.shards.shard_status import status
    from pipelines.verbs import STAGES

    store = open_store(url)
    spec = read_spec(store)
    run = Run(spec, store, PlainReporter())
    table = Table(show_header=False, box=None, pad_edge=False)
    for stage in STAGES:
        if stage.name == "match" and spec.match is None:
            continue
        table.add_row(stage.name, "done" if stage.done(run) else "not done")
    price = spec.resources.price_per_hour if price_per_hour is None else price_per_hour
    for name, value in status(store).lines(price):
        table.add_row(name, value)
    Terminal().print(table)
    if not all(stage.done(run) for stage in STAGES):
        say("the command that started the run goes on from here")


if __name__ == "__main__":
    import sys

    from pipelines.cli import execute

    sys.exit(execute(["status", *sys.argv[1:]]))
