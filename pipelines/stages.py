"""The stages of a run in their order; a verb runs all that are not done up to its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.spec import RunSpec
from engine.spec.recipe import ModelSpec
from engine.storage import documents
from engine.storage.store import Store, address
from engine.training.matching.matching_precheck import MARKER, lora_of, model_of
from pipelines.context import Run, open_run

SECONDS = "results/seconds.json"


@dataclass(frozen=True)
class Stage:
    """One stage: whether its result is there, and how to make it inside a Ray session; `make` says in words what came
    out."""

    name: str
    done: Callable[[Run], bool]
    make: Callable[[Run, float | None], str]
    needs_ray: bool = True


class OutOfTime(Exception):
    """The time limit came; what is done is kept."""


def generator(spec: RunSpec, store: Store, *, matched: bool = False) -> ModelSpec:
    """The model section, with the closed-set generator's folder filled in where the recipe names no checkpoint.

    `matched`: what draws after the fine-tune, which is a checkpoint of its own where all weights were tuned.
    """
    tuned = model_of(spec, store) if matched else None
    if tuned is not None:
        return spec.model.model_copy(update={"checkpoint": tuned, "revision": None})
    if spec.model.checkpoint is not None:
        return spec.model
    return spec.model.model_copy(update={"checkpoint": address(store, "model")})


def _catalog(run: Run, limit: float | None) -> str:
    from engine.images import catalog

    made = catalog.build(run.spec, run.store, run.reporter)
    return (
        f"{made.table.num_rows:,} real images in {len(made.class_names)} classes, "
        f"{made.split('train').num_rows:,} for training; {made.quarantined:,} quarantined"
    )


def _captions(run: Run, limit: float | None) -> str:
    from engine.conditions import conditions_job
    from engine.conditions.table import load_captions
    from engine.images import catalog

    conditions_job.caption(run.spec, catalog.load(run.store), run.store, run.reporter)
    _check_prompts(run, note=True)
    cut = load_captions(run.store).fitted.get("cut")
    more = f"; {cut:,} of them cut at conditions.caption.max_new_tokens" if cut else ""
    return f"captions ({run.spec.conditions.caption.kind}){more}"


def _check_prompts(run: Run, *, note: bool = False) -> None:
    """Refuse prompts whose class a given checkpoint does not read, before anything is computed for it."""
    from engine.conditions import cuts
    from engine.conditions.table import load_captions
    from engine.diffusion import hub, prompt_cuts

    model = run.spec.model
    if model.checkpoint is None:
        return
    found = cuts.check(
        prompt_cuts.of_folder(hub.locate(model.checkpoint, model.revision)), run.spec, load_captions(run.store)
    )
    if note:
        cuts.tell(found, "captions", run.reporter.note)


def _model_done(run: Run) -> bool:
    return run.spec.model.checkpoint is not None or run.store.exists("model/mimeo.json")


def _model(run: Run, limit: float | None) -> str:
    from engine.images import catalog
    from engine.training.pretrain import pretrain

    result = pretrain(run.spec, catalog.load(run.store), run.store, run.reporter, time_limit=limit)
    if not result.done:
        raise OutOfTime
    return "closed-set generator trained from scratch on the training images alone: model/"


def _features(run: Run, limit: float | None) -> str:
    from engine.conditions import conditions_job
    from engine.diffusion import checkpoint
    from engine.images import catalog

    _check_prompts(run)
    model = checkpoint.inspect(generator(run.spec, run.store), run.spec.images.size)
    conditions_job.features(run.spec, catalog.load(run.store), model, run.store, run.reporter)
    return "CLIP features and class statistics"


def _match_done(run: Run) -> bool:
    return run.spec.match is None or run.store.exists(MARKER)


def _match(run: Run, limit: float | None) -> str:
    from engine.diffusion import checkpoint
    from engine.images import catalog
    from engine.training.matching.matching_run import match

    model = checkpoint.inspect(generator(run.spec, run.store), run.spec.images.size)
    result = match(run.spec, run.store, model, catalog.load(run.store), run.reporter, time_limit=limit)
    if not result.done:
        raise OutOfTime
    return "generator fine-tuned by distribution matching: match/"


def _generated(run: Run) -> bool:
    from engine.generation import generation_job

    return generation_job.is_done(run.store)


def _generate(run: Run, limit: float | None) -> str:
    from engine.conditions import table
    from engine.diffusion import checkpoint
    from engine.generation import generation_job
    from engine.images import catalog

    model = checkpoint.inspect(generator(run.spec, run.store, matched=True), run.spec.images.size)
    size = checkpoint.size_note(model.path, run.spec.images.size)
    if size is not None:
        run.reporter.note(size)
    conditions, real = table.load(run.store, run.spec), catalog.load(run.store)
    made = generation_job.generate(
        run.spec, run.store, model, conditions, real, run.reporter, lora=lora_of(run.spec, run.store)
    )
    return f"{made.count:,} synthetic images in {made.shards:,} shards: data/; {made.quarantined:,} quarantined"


def _check_judge(run: Run) -> None:
    """Find out before hours of training whether the recipe's judge will have what it asks for."""
    from engine.images import catalog
    from engine.training import judge_training

    made = catalog.load(run.store)
    judge_training.check(run.spec, made.split("train").num_rows, made.split("test").num_rows)


def _judge(run: Run, limit: float | None) -> str:
    from engine.evaluation import judge_result
    from engine.images import catalog

    judge_result.judge(run.spec, catalog.load(run.store), run.store, run.reporter)
    return "classifiers trained on real, synthetic and mixed data: results/judge.json"


def _report(run: Run, limit: float | None) -> str:
    from engine.evaluation.run_summary import summary
    from engine.report import html

    if run.store.exists("results/judge.json"):
        summary(run.spec, run.store)
    html.write(run.store, run.spec)
    return "report.html"


def _exists(name: str) -> Callable[[Run], bool]:
    return lambda run: run.store.exists(name)


STAGES = (
    Stage("catalog", _exists("catalog/_done.json"), _catalog),
    Stage("captions", _exists("conditions/captions.parquet"), _captions),
    Stage("pretrain", _model_done, _model),
    Stage("features", _exists("conditions/classes.parquet"), _features),
    Stage("match", _match_done, _match),
    Stage("generate", _generated, _generate),
    Stage("judge", _exists("results/judge.json"), _judge),
    Stage("report", _exists("report.html"), _report, needs_ray=False),
)


def _note_seconds(store: Store, name: str, seconds: float) -> None:
    noted = documents.find(store, SECONDS, dict[str, float]) or {}
    noted[name] = round(noted.get(name, 0.0) + seconds, 3)
    store.replace(SECONDS, json.dumps(noted, indent=1, sort_keys=True).encode())


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
            if stage.name == "catalog" and "judge" in names:
                _check_judge(run)
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
