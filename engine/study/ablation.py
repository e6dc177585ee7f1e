"""`mimeo study ablation`: arms over several generator seeds, each trial a Ray task, compared in pairs with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from engine.cluster.progress import Reporter
from engine.errors import ConfigError, MimeoError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, identity
from engine.storage import documents
from engine.storage.store import Store
from engine.study.arms import TRIALS, Trial, section, trials
from engine.study.comparison import arms_and_comparisons
from engine.study.statistics import spread
from engine.study.studyresults import AblationTrial
from engine.study.trial import Shared, generator_key, judge_real, run_trial, train_generator
from engine.study.tuning import one_worker
from engine.training.judge import arms as judged
from engine.training.judge import check as check_judge
from engine.training.judge_data import real_images
from engine.training.setup import await_room

RESULT = "results/ablation.json"
COVERS = (
    "Values are accuracies on the test split, a generator seed each (the mean over its judges). Intervals are 95 % Student-t "
    "intervals over generator seeds; comparisons are paired by seed, p by paired t-tests, adjusted by Holm over all arms. One "
    "split of one data set: another draw of training or test images is not covered."
)


def ablation(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> dict[str, Any]:
    """Run every trial that has no scores yet, then write and return results/ablation.json. Call it inside a Ray session.

    Each trial publishes its scores on its own, so a study that was cut short goes on, and one with more seeds or arms adds them.
    """
    check_judge(spec, catalog.split("train").num_rows, catalog.split("test").num_rows)
    plan = trials(spec)
    for trial in plan:
        _check_scores(store, trial)
    pending = [trial for trial in plan if not store.exists(trial.name)]
    if pending or not store.exists(_real_name(spec)):
        _run(spec, catalog, store, reporter, pending)
    result = summary(
        spec, {trial.name: documents.read(store, trial.name, AblationTrial) for trial in plan}, _real(spec, store)
    )
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def summary(spec: RunSpec, scores: Mapping[str, Any], real: list[float]) -> dict[str, Any]:
    """The study's results from its trials' scores: values and intervals of each arm, and comparisons, by training set."""
    asked, plan = section(spec), trials(spec)
    kinds = [arm.key for arm in judged(spec.judge) if arm.key in next(iter(scores.values()))["scores"]]
    sets = {}
    for kind in kinds:
        values: dict[str, list[float]] = {arm: [] for arm in asked.arms}
        for trial in plan:
            values[trial.arm].append(float(np.mean(scores[trial.name]["scores"][kind])))
        sets[kind] = arms_and_comparisons(values, asked.reference)
    return {
        "name": spec.name,
        "reference": asked.reference,
        "seeds": [spec.seed + number for number in range(asked.seeds)],
        "judge_seeds": spec.judge.seeds,
        "arms": {arm: dict(changes) for arm, changes in asked.arms.items()},
        "real": {"values": real, **spread(real)},
        "training_sets": sets,
        "covers": COVERS,
        "recipe": identity(spec),
    }


def _run(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, pending: list[Trial]) -> None:
    import ray

    with reporter.task("judge: real images", catalog.table.num_rows) as task:
        train, test = catalog.split("train"), catalog.split("test")
        images = real_images(spec, train, task, same_codec=True), real_images(spec, test, task, same_codec=False)
    shared = ray.put(Shared(store.url, catalog, *images))
    with reporter.task("ablation", len(pending), "trials") as task:
        task.update(0)
        done = 0
        for trial, scores in _scores(spec, shared, store, pending):
            if trial is None:
                store.create(_real_name(spec), json.dumps(scores).encode())
                continue
            done += 1
            facts = {"identity": identity(trial.spec), "scores": scores}
            store.create(trial.name, json.dumps(facts, sort_keys=True).encode())
            task.update(done, arm=trial.arm, seed=trial.seed)


def _scores(spec: RunSpec, shared: Any, store: Store, pending: list[Trial]) -> Iterator[tuple[Trial | None, Any]]:
    """Scores as they come; (None, ...) for the judges of real images alone. A generator is trained once for all its arms."""
    import ray

    from engine.cluster.session import device

    where = device(spec.resources)
    await_room(one_worker(spec.resources), where)
    slots: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1} if where == "cuda" else {"num_cpus": 1}
    slots |= {"label_selector": dict(spec.resources.labels)} if spec.resources.labels else {}
    train, run, real = (ray.remote(function).options(**slots) for function in (train_generator, run_trial, judge_real))
    generators: dict[str, Any] = {}
    refs: dict[Any, Trial | None] = {}
    if not store.exists(_real_name(spec)):
        refs[real.remote(spec, shared, where)] = None
    for trial in pending:
        key = generator_key(trial.spec)
        if trial.spec.model.checkpoint is None and key not in generators:
            generators[key] = train.remote(trial.spec, shared, where)
        refs[run.remote(trial.spec, trial.arm, generators.get(key), shared, where)] = trial
    waiting = list(refs)
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield refs[ready[0]], _get(ready[0])


def _get(ref: Any) -> Any:
    """A task's result; its own MimeoError where it has raised one."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, MimeoError):
            raise error.cause from None
        raise


def _check_scores(store: Store, trial: Trial) -> None:
    known = documents.find(store, trial.name, AblationTrial)
    if known is not None and known["identity"] != identity(trial.spec):
        what = f"arm {trial.arm} was run with other settings in {store.url}"
        raise ConfigError(f"ablation.arms.{trial.arm}", what, "give the arm another name, or use another output")


def _real_name(spec: RunSpec) -> str:
    return f"{TRIALS}/real.json"


def _real(spec: RunSpec, store: Store) -> list[float]:
    return documents.read(store, _real_name(spec), list[float])
