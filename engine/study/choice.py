"""What an ablation and deliberate generation do with their trials: compare on validation images, choose, read the test
split once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import numpy as np

from engine.statistics.comparison import arms_and_comparisons
from engine.statistics.published import StudyGroup
from engine.storage import documents
from engine.storage.store import Store
from engine.study.judge_reading import Reading, shares
from engine.study.publishedresults import FinalReading
from engine.study.studyresults import ArmReading, ArmTrial, Choice

Found = Mapping[tuple[int, str], ArmTrial]  # by (generator seed, arm)
Measure = Callable[[Sequence[str]], Found]
COVERS = (
    "Values are a generator seed's each, the mean of its judges, whose seeds no other "
    "generator seed has. Intervals are 95 % "
    "Student-t intervals over generator seeds; those of the population hold the sampling "
    "of the images that were scored on too, "
    "and p are of these. Comparisons are paired by generator seed and image, p adjusted "
    "by Holm over all arms. Arms are compared "
    "and chosen on validation images, so the choice's own difference there is optimistic; "
    "the test split is read after the "
    "choice is written down, for it and the reference, with generators and judges of "
    "other seeds. One draw of training images."
)


def told(readings: Mapping[str, Sequence[Reading]], images: int) -> ArmTrial:
    """What a trial publishes of its judges' readings on so many images, by training set."""
    return {
        "scores": {kind: [one.accuracy for one in own] for kind, own in readings.items()},
        "right": {kind: [one.right for one in own] for kind, own in readings.items()},
        "images": images,
    }


def compared(found: Found, arms: Sequence[str], reference: str, effect: float) -> dict[str, StudyGroup]:
    """Values, intervals and comparisons with `reference` by training set, over all generator seeds that are in
    `found`."""
    seeds = sorted({seed for seed, _ in found})
    first = found[seeds[0], arms[0]]
    sets = {}
    for kind in first["scores"]:
        values = {arm: [float(np.mean(found[seed, arm]["scores"][kind])) for seed in seeds] for arm in arms}
        right = {
            arm: np.stack([shares(found[seed, arm]["right"][kind], first["images"]) for seed in seeds]) for arm in arms
        }
        sets[kind] = arms_and_comparisons(values, reference, right, effect)
    return sets


def best(sets: Mapping[str, StudyGroup]) -> str:
    """The arm with the best accuracy, the mean over the training sets; of equals the one that is named first."""
    arms = list(next(iter(sets.values()))["arms"])
    return max(arms, key=lambda arm: float(np.mean([own["arms"][arm]["mean"] for own in sets.values()])))


def final_reading(
    store: Store, folder: str, chosen: str, reference: str, effect: float, measure: Measure
) -> FinalReading:
    """Write the choice down, then read the test split for it and the reference; that of an earlier choice is the only
    one.

    `measure(arms)` trains generators and judges of fresh seeds and gives what they read.
    """
    name = f"{folder}/choice.json"
    store.create(name, json.dumps({"arm": chosen}).encode())
    choice = documents.read(store, name, Choice)["arm"]
    path = f"{folder}/test.json"
    if not store.exists(path):
        arms = list(dict.fromkeys([reference, choice]))
        found = measure(arms)
        seeds = sorted({seed for seed, _ in found})
        facts = {
            "choice": choice,
            "images": found[seeds[0], reference]["images"],
            "seeds": seeds,
            "training_sets": compared(found, arms, reference, effect),
        }
        store.create(path, json.dumps(facts, allow_nan=False).encode())
    return cast(FinalReading, {**documents.read(store, path, ArmReading), "of_this_choice": choice == chosen})
