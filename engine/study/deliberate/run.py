"""`mimeo study deliberate`: rounds chosen by the classifier against a static plan of as many images, paired by generator seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.images.catalog import Catalog
from engine.spec import RunSpec, identity
from engine.storage import documents
from engine.storage.store import Store
from engine.study import tuning
from engine.study.comparison import arms_and_comparisons
from engine.study.deliberate.trial import SETS, STATIC, Study, loop, name_of, section, settings
from engine.study.studyresults import DeliberateTrial
from engine.study.trial import Shared

RESULT = "results/deliberate.json"
COVERS = (
    "Values are accuracies on the test split, a generator seed each (the mean over its judges), with as many synthetic images in "
    "every arm. Intervals are 95 % Student-t intervals over generator seeds; comparisons are paired by seed, p adjusted by Holm. "
    "One split of one data set."
)


def check(spec: RunSpec) -> None:
    """Refuse, before Ray starts, what cannot work (ConfigError)."""
    asked = section(spec)
    if spec.generate.count < asked.rounds:
        what = f"{spec.generate.count} images cannot be drawn in {asked.rounds} rounds"
        raise ConfigError("deliberate.rounds", what, "ask for fewer rounds, or raise generate.count")
    if "class_error" in asked.by and not spec.split.validation:
        raise ConfigError(
            "split.validation",
            "is empty, and class_error is read on validation images",
            "set it, or leave class_error out",
        )


def deliberate(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> dict[str, Any]:
    """Run every arm and seed that has no accuracies yet, then write and return results/deliberate.json. Call it inside a Ray session."""
    if not catalog.split("test").num_rows:
        raise ConfigError("split.test", "the study needs a test split", "set it, or source.test_path")
    seeds = [spec.seed + number for number in range(section(spec).seeds)]
    arms = [STATIC, *section(spec).by]
    for name in (name_of(seed, arm) for seed in seeds for arm in arms):
        known = documents.find(store, name, DeliberateTrial)
        if known is not None and known["settings"] != settings(spec):
            raise ConfigError("deliberate", f"{name} was run with other settings in {store.url}", "use another output")
    pending = [seed for seed in seeds if not all(store.exists(name_of(seed, arm)) for arm in arms)]
    if pending:
        _run(spec, catalog, store, reporter, pending)
    found = {(seed, arm): documents.read(store, name_of(seed, arm), DeliberateTrial) for seed in seeds for arm in arms}
    result = summary(spec, found)
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def summary(spec: RunSpec, found: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    """Accuracies, intervals and comparisons with the static plan, by training set, from each (seed, arm)'s facts."""
    asked = section(spec)
    seeds = sorted({seed for seed, _ in found})
    arms = [STATIC, *asked.by]
    sets = {}
    for kind in SETS:
        values = {arm: [float(np.mean(found[seed, arm]["scores"][kind])) for seed in seeds] for arm in arms}
        sets[kind] = arms_and_comparisons(values, STATIC)
    return {
        "name": spec.name,
        "reference": STATIC,
        "seeds": seeds,
        "judge_seeds": spec.judge.seeds,
        "images": spec.generate.count,
        "rounds": asked.rounds,
        "share": asked.share,
        "hard_guidance": asked.hard_guidance,
        "training_sets": sets,
        "classes": {arm: [entry["classes"] for entry in found[seeds[0], arm]["rounds"]] for arm in asked.by},
        "covers": COVERS,
        "recipe": identity(spec),
    }


def _run(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, pending: list[int]) -> None:
    import ray

    from engine.training.judge_data import real_images

    with reporter.task("deliberate: real images", catalog.table.num_rows) as task:
        train = real_images(spec, catalog.split("train"), task, same_codec=True)
        test, validation = (
            real_images(spec, catalog.split(name), task, same_codec=False) if catalog.split(name).num_rows else None
            for name in ("test", "validation")
        )
    assert test is not None
    study, board = ray.put(Study(spec, Shared(store.url, catalog, train, test), validation)), Board.create()
    parameters = {"study": [study], "board": board, "resources": tuning.one_worker(spec.resources)}
    with follow(board, reporter):
        tuning.every(trial, "seed", pending, parameters, reporter, "deliberate")


def trial(config: dict[str, Any], report: tuning.Report, parameters: dict[str, Any]) -> None:
    """The driver function of one seed: a Ray Train run of one worker."""
    from engine.training import setup

    given = {"study": parameters["study"][0], "seed": config["seed"], "board": parameters["board"]}
    setup.run(loop, given, name=f"deliberate-{config['seed']}", resources=parameters["resources"])
    report(1.0)
