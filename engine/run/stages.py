"""The stages of a run in their order, up to its judges: what each makes, whether it is there, and where it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine import output
from engine.cluster.progress import Reporter
from engine.conditions import row_pool
from engine.spec import RunSpec
from engine.spec.recipe import ModelSpec
from engine.storage.store import Store, address
from engine.training.matching.matching_precheck import lora_of, model_of


@dataclass(frozen=True)
class Where:
    """Where a stage runs: on the actors and workers of the cluster, or in this process, on `device`."""

    device: str | None = None

    @property
    def rows(self) -> row_pool.Run:
        """What works on all training images."""
        return row_pool.run if self.device is None else row_pool.here


@dataclass(frozen=True)
class Run:
    """A validated spec, the output that it owns, where to tell the user, and where the stages run.

    `generator`: the closed-set generator that several runs share, a path or URL; None where a run trains its own.
    """

    spec: RunSpec
    store: Store
    reporter: Reporter
    where: Where = Where()
    generator: str | None = None


@dataclass(frozen=True)
class Stage:
    """One stage: whether its result is there, and how to make it inside a Ray session; `make` says in words what came
    out.

    `precheck` is called once the catalog is there, before anything else is made.
    """

    name: str
    done: Callable[[Run], bool]
    make: Callable[[Run, float | None], str]
    precheck: Callable[[Run], None] = lambda run: None
    needs_ray: bool = True


class OutOfTime(Exception):
    """The time limit came; what is done is kept."""


def generator(run: Run, *, matched: bool = False) -> ModelSpec:
    """The model that draws, with the closed-set generator's folder filled in where the recipe names no checkpoint.

    `matched`: what draws after the fine-tune, which is a checkpoint of its own where all weights were tuned.
    """
    model, tuned = run.spec.model, model_of(run.spec, run.store) if matched else None
    if tuned is not None:
        return model.model_copy(update={"checkpoint": tuned, "revision": None})
    if model.checkpoint is not None:
        return model
    return model.model_copy(update={"checkpoint": run.generator or address(run.store, output.MODEL)})


def make(run: Run, names: Sequence[str]) -> None:
    """Make the named stages that are not done, in order."""
    for stage in STAGES:
        if stage.name in names and not stage.done(run):
            stage.make(run, None)


def upto(last: str) -> tuple[str, ...]:
    """The names of all stages before one, and its own."""
    names = [stage.name for stage in STAGES]
    return tuple(names[: names.index(last) + 1])


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

    conditions_job.caption(run.spec, catalog.load(run.store), run.store, run.reporter, run.where.rows)
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
    given = run.generator or run.spec.model.checkpoint
    return given is not None or run.store.exists(output.MODEL_MARKER)


def _model(run: Run, limit: float | None) -> str:
    from engine.images import catalog
    from engine.training.pretrain import pretrain

    real, here = catalog.load(run.store), run.where.device
    result = pretrain(run.spec, real, run.store, run.reporter, time_limit=limit, here=here)
    if not result["done"]:
        raise OutOfTime
    return "closed-set generator trained from scratch on the training images alone: model/"


def _features(run: Run, limit: float | None) -> str:
    from engine.conditions import conditions_job
    from engine.diffusion import checkpoint
    from engine.images import catalog

    _check_prompts(run)
    model = checkpoint.inspect(generator(run), run.spec.images.size)
    conditions_job.features(run.spec, catalog.load(run.store), model, run.store, run.reporter, run.where.rows)
    return "CLIP features and class statistics"


def _match_done(run: Run) -> bool:
    return run.spec.match is None or run.store.exists(output.MATCH_MARKER)


def _match(run: Run, limit: float | None) -> str:
    from engine.diffusion import checkpoint
    from engine.images import catalog
    from engine.training.matching.matching_run import match

    model = checkpoint.inspect(generator(run), run.spec.images.size)
    real, here = catalog.load(run.store), run.where.device
    result = match(run.spec, run.store, model, real, run.reporter, time_limit=limit, here=here)
    if not result["done"]:
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

    model = checkpoint.inspect(generator(run, matched=True), run.spec.images.size)
    size = checkpoint.size_note(model.path, run.spec.images.size)
    if size is not None:
        run.reporter.note(size)
    conditions, real = table.load(run.store, run.spec), catalog.load(run.store)
    lora, here = lora_of(run.spec, run.store), run.where.device
    made = generation_job.generate(run.spec, run.store, model, conditions, real, run.reporter, lora=lora, here=here)
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
    return f"classifiers trained on real, synthetic and mixed data: {output.JUDGE}"


def _exists(name: str) -> Callable[[Run], bool]:
    return lambda run: run.store.exists(name)


STAGES = (
    Stage("catalog", _exists(output.CATALOG_DONE), _catalog),
    Stage("captions", _exists(output.CAPTIONS), _captions),
    Stage("pretrain", _model_done, _model),
    Stage("features", _exists(output.CLASSES), _features),
    Stage("match", _match_done, _match),
    Stage("generate", _generated, _generate),
    Stage("judge", _exists(output.JUDGE), _judge, precheck=_check_judge),
)
