"""A verb: a recipe's stages up to its own, inside one Ray session, with their times told and noted."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from engine import output
from engine.run.stages import STAGES as MAKING
from engine.run.stages import OutOfTime, Run, Stage
from engine.storage import documents
from engine.storage.store import Store
from pipelines.context import open_run


def _report(run: Run, limit: float | None) -> str:
    from engine.evaluation.run_summary import summary
    from engine.report import html

    if run.store.exists(output.JUDGE):
        summary(run.spec, run.store)
    html.write(run.store, run.spec)
    return output.REPORT


STAGES = (*MAKING, Stage("report", lambda run: run.store.exists(output.REPORT), _report, needs_ray=False))


def _note_seconds(store: Store, name: str, seconds: float) -> None:
    noted = documents.find(store, output.SECONDS, dict[str, float]) or {}
    noted[name] = round(noted.get(name, 0.0) + seconds, 3)
    store.replace(output.SECONDS, json.dumps(noted, indent=1, sort_keys=True).encode())


def run_stages(run: Run, names: Sequence[str], time_limit: float | None = None) -> bool:
    """Make the named stages that are not done, in order; False when the time limit ended it early."""
    from contextlib import ExitStack

    from engine.cluster.session import session

    deadline = time.monotonic() + time_limit if time_limit is not None else None
    with ExitStack() as stack:
        ray_is_up = False
        for stage in (stage for stage in STAGES if stage.name in names):
            if stage.done(run):
                continue
            if deadline is not None and time.monotonic() >= deadline:
                return False
            if stage.needs_ray and not ray_is_up:
                run.reporter.note("starting Ray ...")
                stack.enter_context(session(run.spec.resources, store=run.store))
                ray_is_up = True
            started = time.monotonic()
            try:
                text = stage.make(run, deadline - time.monotonic() if deadline is not None else None)
            except OutOfTime:
                _note_seconds(run.store, stage.name, time.monotonic() - started)
                return False
            _note_seconds(run.store, stage.name, time.monotonic() - started)
            if stage.name == "catalog":
                for later in (stage for stage in STAGES if stage.name in names):
                    later.precheck(run)
            run.reporter.note(f"{stage.name}: {text} ({time.monotonic() - started:.0f} s)")
    return True


def upto(last: str) -> tuple[str, ...]:
    """The stages that a verb needs: all before its own, and its own; the judge is never needed by the report."""
    names = [stage.name for stage in STAGES]
    return tuple(names[: names.index(last) + 1])


def verb(
    last: str, recipe: str, overrides: Sequence[str] | None, output: str | None, time_limit: float | None = None
) -> Run | None:
    """Run a recipe up to the stage `last`; returns the run, or None when the time limit ended it early."""
    with open_run(recipe, overrides, output, last) as run:
        if all(stage.done(run) for stage in STAGES if stage.name in upto(last)):
            run.reporter.note(f"nothing to do: {run.store.url} holds the finished {last}")
            return run
        if run_stages(run, upto(last), time_limit):
            return run
        run.reporter.note("time limit reached; the same command goes on from here")
        return None
