"""The generation job: what is planned less what is published, made by a pool of pinned Ray Data actors, recorded,
finished."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engine import __version__
from engine.errors import ConfigError, DataError
from engine.generation import actor_pool, attempts
from engine.generation.actor import Adapter, Order, build_worker
from engine.generation.gate import Budget
from engine.generation.generation_watch import Watch
from engine.generation.generation_worker import record_of
from engine.generation.sample_plan import Plan
from engine.shards import manifest, records
from engine.shards.names import PLAN, PlanFacts
from engine.spec import RunSpec, canonical_json, differences, sample_key, spec_hash
from engine.storage import notes
from engine.storage.parallel import mapped
from engine.storage.store import Store

if TYPE_CHECKING:
    from engine.cluster.progress import Reporter
    from engine.conditions.cuts import Cuts
    from engine.conditions.table import Conditions
    from engine.diffusion.checkpoint import Checkpoint
    from engine.images.catalog import Catalog

FORMAT = 1


@dataclass(frozen=True)
class Summary:
    """What an output holds (`count` samples, `quarantined` ones by `reasons`, `shards`), and the shards that this call
    `made`."""

    count: int
    quarantined: int
    reasons: dict[str, int]
    shards: int
    made: int
    seconds: float


def is_done(store: Store) -> bool:
    """Whether the output's synthetic set is finished; needs no Ray."""
    return store.exists(manifest.SEAL)


def generate(
    spec: RunSpec,
    store: Store,
    checkpoint: Checkpoint,
    conditions: Conditions,
    catalog: Catalog,
    reporter: Reporter,
    *,
    lora: Path | str | None = None,
    order: Literal["planned", "shuffled"] = "planned",
    here: str | None = None,
) -> Summary:
    """Make every shard that is not there yet, inside a Ray session, and finish the set with its manifest and indexes.

    May be stopped at any time and called again: what is published stays. `lora` is the adapter's file or URL, if there
    is one; `order` only changes what is scheduled first; `here` names a device on which this process makes all shards
    itself. Raises ConfigError where the output was begun with something else, DataError where too many samples fail,
    and what the workers raise.
    """
    began = time.monotonic()
    from engine.conditions import cuts
    from engine.diffusion import classes
    from engine.diffusion.checkpoint import check_generate

    plan = Plan(spec, conditions.labels, conditions.class_names)
    facts = PlanFacts(spec.name, plan.count, plan.shard_size, spec_hash(spec))
    digest = check(spec, checkpoint, lora)
    numbers = classes.numbers(checkpoint, conditions.class_names, spec.model)
    read = _cuts(spec, checkpoint, conditions)
    _begin(store, _plan_json(spec, facts, checkpoint, digest, replace(conditions, class_numbers=numbers), catalog))
    for setting in check_generate(checkpoint, spec.generate):
        reporter.note(f"{spec.generate.scheduler} leaves out {setting}, which the checkpoint's scheduler sets")
    if numbers is not None:
        reporter.note(f"the checkpoint's classes: {classes.shown(numbers, conditions.class_names, checkpoint)}")
    cuts.keep(store, read)
    cuts.tell(read, "generate", reporter.note)
    pending = records.pending(store, facts)

    def plan_digest(k: int) -> str:
        return plan.digest(*plan.shard(k), conditions.keys, conditions.prompts)

    budget = Budget(spec.generate.gate, plan.count)
    published = sorted(set(range(plan.shards)).difference(pending))
    for record in mapped(lambda k: record_of(store, facts, k, plan_digest), published):
        budget.add(record.planned, [entry.reason for entry in record.quarantined])
    if order == "shuffled":
        random.Random(spec.seed).shuffle(pending)
    if pending:
        adapter = None if lora is None or digest is None else Adapter(lora, digest)
        if here is None:
            _make(spec, store, checkpoint, adapter, pending, budget, reporter)
        else:
            scorer = _scorer_digest(spec, checkpoint)
            what = Order(store.url, spec, checkpoint, adapter, here, attempts.new_session(), 1, scorer)
            _make_here(what, pending, budget, reporter)
    made = manifest.finalise(store, facts, plan_digest)
    seconds = time.monotonic() - began
    return Summary(made.seal.samples, made.seal.quarantined, dict(budget.reasons), plan.shards, len(pending), seconds)


def _make(
    spec: RunSpec,
    store: Store,
    checkpoint: Checkpoint,
    lora: Adapter | None,
    pending: list[int],
    budget: Budget,
    reporter: Reporter,
) -> None:
    """Run the actor pool over the pending shards and count their records as they come."""
    from engine.cluster import nodes, session
    from engine.cluster.board import Board

    todo = actor_pool.rows(pending)
    actors, need = min(session.actors(spec.resources), len(todo)), session.need(spec.resources)
    nodes.wait_for(need, actors, spec.resources, reporter)
    device = session.device(spec.resources)
    scorer = _scorer_digest(spec, checkpoint)
    what = Order(store.url, spec, checkpoint, lora, device, attempts.new_session(), actors, scorer)
    board = Board.create()
    attempts.clear(store)
    missing = nodes.told_of_missing(need, actors, spec.resources, reporter)
    with missing, reporter.task("generate", budget.count) as task:
        watch = Watch(reporter, task, board, budget.done, budget.quarantined, spec.resources.stall)
        with watch.running(), closing(actor_pool.records(what, todo, board, watch.stuck, reporter.note)) as made:
            for record in made:
                watch.add(record)
                budget.add(record.planned, [entry.reason for entry in record.quarantined])
    attempts.clear(store)


def _cuts(spec: RunSpec, checkpoint: Checkpoint, conditions: Conditions) -> Cuts:
    """What is cut of the prompts, as `cuts.check` has it; a node counts the same prompts for the same tokenizers
    once."""
    from engine.conditions import cuts
    from engine.diffusion import prompt_cuts

    key = {"checkpoint": checkpoint.digest, "conditions": conditions.digest(), "prompt": spec.conditions.prompt}
    key |= {"suffix": spec.generate.quality_suffix, "negative": spec.generate.negative_prompt, "format": "1"}
    readers = prompt_cuts.of_folder(checkpoint.path)
    found = notes.found("prompts", key, lambda: cuts.check(readers, spec, conditions).model_dump(mode="json"))
    return cuts.Cuts.model_validate(found)


def _scorer_digest(spec: RunSpec, checkpoint: Checkpoint) -> str:
    """Identity of the model that the actors' CLIP scores come from; "" where there are none."""
    if spec.generate.gate.min_clip_score is None:
        return ""
    from engine.conditions import featuremodel

    return featuremodel.scorer(spec, checkpoint.path).digest


def _make_here(what: Order, pending: list[int], budget: Budget, reporter: Reporter) -> None:
    """Make the pending shards in this process, one after another."""
    worker = build_worker(what)
    try:
        with reporter.task("generate", budget.count) as task:
            task.update(budget.done)
            for k in pending:
                record = worker.make(k)
                budget.add(record.planned, [entry.reason for entry in record.quarantined])
                task.update(budget.done)
    finally:
        worker.meter.close()


def _begin(store: Store, plan: Mapping[str, object]) -> None:
    """Write plan.json the first time, compare with it later; raises ConfigError naming what has changed."""
    text = (canonical_json(plan) + "\n").encode()
    if store.create(PLAN, text):
        return
    where = f"{store.url}/{PLAN}"
    try:
        stored = json.loads(store.read(PLAN))
        changed = differences(stored, plan)
    except (ValueError, AttributeError, RecursionError):
        raise DataError(
            where, "is not the plan that this engine writes", "restore it, or use another --output"
        ) from None
    if changed:
        raise ConfigError(
            where,
            f"this output was begun with something else: {', '.join(change[:200] for change in changed[:5])}",
            "use what it was begun with, or another --output",
        )


def _plan_json(
    spec: RunSpec,
    facts: PlanFacts,
    checkpoint: Checkpoint,
    lora: str | None,
    conditions: Conditions,
    catalog: Catalog,
) -> dict[str, object]:
    """What decides the samples: shapes of the plan, and the identity of everything that they are made from."""
    from engine.diffusion import classes

    numbers = conditions.class_numbers
    return {
        "format": FORMAT,
        **facts.to_json(),
        "sample_key": f"{sample_key(spec):016x}",
        "checkpoint": checkpoint.digest,
        "lora": lora,
        "catalog": catalog.digest,
        "conditions": conditions.digest(),
        "engine": __version__,
        **({} if classes.is_order(numbers) else {"class_numbers": numbers and list(numbers)}),
    }


def check(spec: RunSpec, checkpoint: Checkpoint, lora: Path | str | None = None) -> str | None:
    """Refuse, before a GPU is used, what the checkpoint cannot do (ConfigError); the digest of the LoRA, if there is
    one."""
    from engine.conditions import conditions_job as conditions_job
    from engine.diffusion.checkpoint import check_generate

    check_generate(checkpoint, spec.generate)
    conditions_job.precheck(spec, checkpoint.path, checkpoint.places)
    if lora is None:
        return None
    from engine.diffusion import lora as loras

    return loras.check(lora, checkpoint).sha256
