"""`mimeo study ablation`: arms over several generator seeds, each trial on Ray Tune, compared in pairs with
intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from engine import output
from engine.cluster.board import Board
from engine.cluster.progress import Reporter
from engine.images.catalog import Catalog, withheld
from engine.spec import RunSpec, identity
from engine.statistics.intervals import spread
from engine.statistics.nested import generator_seeds
from engine.storage import documents
from engine.storage.store import Store
from engine.study import choice, trials
from engine.study.ablation_arms import TRIALS, Arm, changed, every_arm, final_arms, section
from engine.study.judge_reading import TEST, VALIDATION, need_validation, note_test, scored
from engine.study.publishedresults import AblationResult
from engine.study.studyresults import AblationTrial, Copied, RealJudges
from engine.study.trial import Shared, judge_real, run_trial, train_generator
from engine.study.trials import Trial
from engine.training.judge_data import real_images
from engine.training.judge_fit import arms as judged
from engine.training.judge_training import check as check_judge

RESULT = output.ABLATION


def ablation(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> AblationResult:
    """Run every trial that has no scores yet, choose, read the test split once; writes and returns
    results/ablation.json.

    Call it inside a Ray session. Each trial publishes its scores on its own, so a study that was cut short goes on, and
    one with more seeds or arms adds them. Once the test split was read for a choice it is never read for another.
    """
    held = catalog.split(VALIDATION).num_rows
    need_validation(held, "an ablation")
    check_judge(spec, catalog.split("train").num_rows, held)
    found = _measured(spec, catalog, store, reporter, every_arm(spec), VALIDATION)
    result = summary(spec, found, {seed: _real(store, VALIDATION, seed) for seed in _seeds(spec, VALIDATION)})
    asked = section(spec)
    images = catalog.split(TEST).num_rows
    result |= {"validation_images": held, "test": None}
    if images:

        def read_test(arms: Sequence[str]) -> choice.Found:
            plan = final_arms(spec, arms)
            names = [f"{one.name}-{number}" for one in plan for number in range(spec.judge.seeds)]
            note_test(store, "study ablation", [*arms, "real"], names, images)
            return _measured(spec, catalog, store, reporter, plan, TEST)

        read = choice.final_reading(store, TRIALS, result["chosen"], asked.reference, asked.effect, read_test)
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
    spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, arms: Sequence[Arm], split: str
) -> choice.Found:
    """What every arm and generator seed read, run where it is not published yet."""
    plan = [Trial(f"arm {one.arm} seed {one.seed}", one.name, identity(one.spec), (one.spec, one.arm)) for one in arms]
    alone = [changed(spec, {}, seed) for seed in _seeds(spec, split)]
    plan += [Trial(f"real seed {one.seed}", _real_name(split, one.seed), identity(one), (one, None)) for one in alone]
    pending = trials.missing(store, plan, "ablation")
    if pending:
        with reporter.task("judge: real images", catalog.table.num_rows) as task:
            train = real_images(spec, catalog.split("train"), task, same_codec=True)
            held, validation = scored(spec, catalog, split, task)
        shared = Shared(store.url, withheld(catalog), train, held, validation)
        title = "ablation" if split == VALIDATION else "ablation: test"
        trials.run(measure, shared, pending, store, spec.resources, reporter, title)
    return {(one.seed, one.arm): documents.read(store, one.name, AblationTrial) for one in arms}


def measure(shared: Shared, work: tuple[RunSpec, str | None], device: str, board: Board) -> dict[str, Any]:
    """What the judges of an arm's images read, and its copies; without an arm, those of the real images alone."""
    spec, arm = work
    shared = replace(shared, board=board)
    if arm is None:
        return {"accuracies": [reading.accuracy for reading in judge_real(spec, spec.seed, shared, device)]}
    readings, copies = run_trial(spec, arm, train_generator(spec, shared, device), shared, device)
    return {**choice.told(readings, len(shared.held.labels)), "copies": copies}


def _real_name(split: str, seed: int) -> str:
    return f"{TRIALS}/{split}/real-{seed}.json"


def _real(store: Store, split: str, seed: int) -> list[float]:
    return documents.read(store, _real_name(split, seed), RealJudges)["accuracies"]
