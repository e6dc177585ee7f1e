"""`mimeo study deliberate`: rounds chosen by the classifier against a static plan of as many images, paired by
generator seed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from engine import output
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.images.catalog import Catalog, withheld
from engine.spec import RunSpec, identity
from engine.statistics.nested import generator_seeds
from engine.storage import documents
from engine.storage.store import Store
from engine.study import choice, trials
from engine.study.deliberate import deliberate_trial
from engine.study.deliberate.deliberate_trial import RESULTS, STATIC, Study, name_of, section, settings
from engine.study.judge_reading import TEST, VALIDATION, need_validation, note_test, scored
from engine.study.publishedresults import DeliberateResult
from engine.study.studyresults import DeliberateTrial
from engine.study.trial import Shared
from engine.study.trials import Trial
from engine.training.judge_data import real_images

RESULT = output.DELIBERATE


def check(spec: RunSpec) -> None:
    """Refuse, before Ray starts, what cannot work (ConfigError)."""
    asked = section(spec)
    if spec.generate.count < asked.rounds:
        what = f"{spec.generate.count} images cannot be drawn in {asked.rounds} rounds"
        raise ConfigError("deliberate.rounds", what, "ask for fewer rounds, or raise generate.count")
    need_validation(spec.split.validation, "deliberate generation")


def deliberate(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> DeliberateResult:
    """Run every arm and seed that has no accuracies yet, choose, read the test split once; writes and returns
    results/deliberate.json.

    Call it inside a Ray session. Once the test split was read for a choice it is never read for another.
    """
    held, images = (catalog.split(split).num_rows for split in (VALIDATION, TEST))
    need_validation(held, "deliberate generation")
    asked = section(spec)
    found = _measured(spec, catalog, store, reporter, [STATIC, *asked.by], VALIDATION)
    result = summary(spec, found)
    result |= {"validation_images": held, "test": None}
    if images:

        def measure(arms: Sequence[str]) -> choice.Found:
            wanted = [name_of(seed, arm, TEST) for seed in _seeds(spec, TEST) for arm in arms]
            names = [f"{name}-{number}" for name in wanted for number in range(spec.judge.seeds)]
            note_test(store, "study deliberate", arms, names, images)
            return _measured(spec, catalog, store, reporter, arms, TEST)

        result["test"] = choice.final_reading(store, RESULTS, result["chosen"], STATIC, asked.effect, measure)
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def summary(spec: RunSpec, found: dict[tuple[int, str], DeliberateTrial]) -> DeliberateResult:
    """Accuracies on validation images, intervals, comparisons with the static plan and the choice, from each (seed,
    arm)'s facts."""
    asked = section(spec)
    seeds = sorted({seed for seed, _ in found})
    sets = choice.compared(found, [STATIC, *asked.by], STATIC, asked.effect)
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
        "chosen": choice.best(sets),
        "effect": asked.effect,
        "classes": {arm: [entry["classes"] for entry in found[seeds[0], arm]["rounds"]] for arm in asked.by},
        "covers": choice.COVERS,
        "recipe": identity(spec),
    }


def _seeds(spec: RunSpec, split: str) -> list[int]:
    return generator_seeds(spec.seed, section(spec).seeds, fresh=split == TEST)


def _measured(
    spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, arms: Sequence[str], split: str
) -> dict[tuple[int, str], DeliberateTrial]:
    """What these arms read on the images of a split, run where it is not published yet."""
    names = {(seed, arm): name_of(seed, arm, split) for seed in _seeds(spec, split) for arm in arms}
    plan = [Trial(f"seed {seed} {arm}", name, settings(spec), (seed, arm)) for (seed, arm), name in names.items()]
    pending = trials.missing(store, plan, "deliberate")
    if pending:
        with reporter.task("deliberate: real images", catalog.table.num_rows) as task:
            train = real_images(spec, catalog.split("train"), task, same_codec=True)
            held, validation = scored(spec, catalog, split, task)
        study = Study(spec, Shared(store.url, withheld(catalog), train, held, validation))
        title = "deliberate" if split == VALIDATION else "deliberate: test"
        trials.run(deliberate_trial.run, study, pending, store, spec.resources, reporter, title)
    return {key: documents.read(store, name, DeliberateTrial) for key, name in names.items()}
