"""`mimeo study ablation`: arms over several generator seeds, each trial a Ray task, compared in pairs with
intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from engine.cluster.progress import Reporter
from engine.errors import ConfigError, MimeoError
from engine.images.catalog import Catalog, withheld
from engine.spec import RunSpec, identity
from engine.storage import documents
from engine.storage.store import Store
from engine.study import choice
from engine.study.ablation_arms import TRIALS, Trial, final_trials, section, trials
from engine.study.judge_reading import TEST, VALIDATION, need_validation, note_test, scored
from engine.study.nested import generator_seeds
from engine.study.publishedresults import AblationResult
from engine.study.statistics import spread
from engine.study.studyresults import AblationTrial, Copied, RealJudges
from engine.study.trial import Shared, generator_key, judge_real, run_trial, train_generator
from engine.study.tuning import one_worker
from engine.training.judge_data import real_images
from engine.training.judge_training import arms as judged
from engine.training.judge_training import check as check_judge
from engine.training.setup import await_room

RESULT = "results/ablation.json"


def ablation(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> AblationResult:
    """Run every trial that has no scores yet, choose, read the test split once; writes and returns
    results/ablation.json.

    Call it inside a Ray session. Each trial publishes its scores on its own, so a study that was cut short goes on, and
    one with more seeds or arms adds them. Once the test split was read for a choice it is never read for another.
    """
    held = catalog.split(VALIDATION).num_rows
    need_validation(held, "an ablation")
    check_judge(spec, catalog.split("train").num_rows, held)
    plan = trials(spec)
    found = _measured(spec, catalog, store, reporter, plan, VALIDATION)
    result = summary(spec, found, {seed: _real(store, VALIDATION, seed) for seed in _seeds(spec, VALIDATION)})
    asked = section(spec)
    images = catalog.split(TEST).num_rows
    result |= {"validation_images": held, "test": None}
    if images:

        def measure(arms: Sequence[str]) -> choice.Found:
            plan = final_trials(spec, arms)
            names = [f"{trial.name}-{number}" for trial in plan for number in range(spec.judge.seeds)]
            note_test(store, "study ablation", [*arms, "real"], names, images)
            return _measured(spec, catalog, store, reporter, plan, TEST)

        read = choice.final_reading(store, TRIALS, result["chosen"], asked.reference, asked.effect, measure)
        real = [float(np.mean(_real(store, TEST, seed))) for seed in read["seeds"]]
        read["real"] = {"values": real, **spread(real)}
        result["test"] = read
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def summary(spec: RunSpec, found: choice.Found, real: Mapping[int, Sequence[float]]) -> AblationResult:
    """The study's results on validation images from its trials' scores: values and intervals of each arm, comparisons,
    the choice.

    `real`: accuracies of the judges of real images alone, by generator seed.
    """
    asked = section(spec)
    sets = choice.compared(found, list(asked.arms), asked.reference, asked.effect)
    kinds = [arm.key for arm in judged(spec.judge) if arm.key in sets]
    values = [float(np.mean(own)) for own in real.values()]
    ordered = {kind: sets[kind] for kind in kinds}
    return {
        "name": spec.name,
        "reference": asked.reference,
        "seeds": _seeds(spec, VALIDATION),
        "judge_seeds": spec.judge.seeds,
        "arms": {arm: dict(changes) for arm, changes in asked.arms.items()},
        "real": {"values": values, **spread(values)},
        "training_sets": ordered,
        "chosen": choice.best(ordered),
        "copies": copies_of(found, list(asked.arms)),
        "effect": asked.effect,
        "covers": choice.COVERS,
        "recipe": identity(spec),
    }


def copies_of(found: choice.Found, arms: Sequence[str]) -> dict[str, Copied]:
    """Copy share and membership AUC of each arm, the mean over generator seeds; without those of trials of before."""
    out: dict[str, Copied] = {}
    for arm in arms:
        trials = [cast(AblationTrial, trial) for (_, name), trial in found.items() if name == arm]
        own = [trial["copies"] for trial in trials if "copies" in trial]
        if own:
            out[arm] = {
                "share": float(np.mean([one["share"] for one in own])),
                "auc": float(np.mean([one["auc"] for one in own])),
            }
    return out


def _seeds(spec: RunSpec, split: str) -> list[int]:
    return generator_seeds(spec.seed, section(spec).seeds, fresh=split == TEST)


def _measured(
    spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, plan: Sequence[Trial], split: str
) -> choice.Found:
    """What every trial read, run where it is not published yet."""
    for trial in plan:
        _check_scores(store, trial)
    pending = [trial for trial in plan if not store.exists(trial.name)]
    real = [seed for seed in _seeds(spec, split) if not store.exists(_real_name(split, seed))]
    if pending or real:
        _run(spec, catalog, store, reporter, pending, real, split)
    return {(trial.seed, trial.arm): documents.read(store, trial.name, AblationTrial) for trial in plan}


def _run(
    spec: RunSpec,
    catalog: Catalog,
    store: Store,
    reporter: Reporter,
    pending: Sequence[Trial],
    real: Sequence[int],
    split: str,
) -> None:
    import ray

    with reporter.task("judge: real images", catalog.table.num_rows) as task:
        train = real_images(spec, catalog.split("train"), task, same_codec=True)
        held, validation = scored(spec, catalog, split, task)
    shared = ray.put(Shared(store.url, withheld(catalog), train, held, validation))
    name = "ablation" if split == VALIDATION else "ablation: test"
    with reporter.task(name, len(pending), "trials") as task:
        task.update(0)
        done = 0
        for key, read in _scores(spec, shared, pending, real):
            if isinstance(key, int):
                alone = {"accuracies": [one.accuracy for one in read]}
                store.create(_real_name(split, key), json.dumps(alone).encode())
                continue
            done += 1
            readings, copies = read
            facts = {"identity": identity(key.spec), **choice.told(readings, len(held.labels)), "copies": copies}
            store.create(key.name, json.dumps(facts, sort_keys=True).encode())
            task.update(done, arm=key.arm, seed=key.seed)


def _scores(
    spec: RunSpec, shared: Any, pending: Sequence[Trial], real: Sequence[int]
) -> Iterator[tuple[Trial | int, Any]]:
    """Readings as they come, by trial, or by seed for the judges of real images alone. A generator is trained once for
    all its arms."""
    import ray

    from engine.cluster.session import device

    where = device(spec.resources)
    await_room(one_worker(spec.resources), where)
    slots: dict[str, object] = {"num_gpus": 1, "num_cpus": 1} if where == "cuda" else {"num_cpus": 1}
    slots |= {"label_selector": dict(spec.resources.labels)} if spec.resources.labels else {}
    train, run, alone = (ray.remote(function).options(**slots) for function in (train_generator, run_trial, judge_real))
    generators: dict[str, object] = {}
    refs: dict[Any, Trial | int] = {alone.remote(spec, seed, shared, where): seed for seed in real}
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


def _real_name(split: str, seed: int) -> str:
    return f"{TRIALS}/{split}/real-{seed}.json"


def _real(store: Store, split: str, seed: int) -> list[float]:
    return documents.read(store, _real_name(split, seed), RealJudges)["accuracies"]
