"""Learning rate and length of an arm's judges, chosen for each arm on validation images before judges of other seeds
are scored."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from engine.errors import ConfigError
from engine.seeds import derive
from engine.spec.recipe import JudgeSpec
from engine.storage import documents
from engine.storage.store import Store

if TYPE_CHECKING:
    import torch

    from engine.training.judge_fit import Arm, Data

RATES, LENGTHS = (1, 3), (1, 2)  # times judge.lr and judge.steps


class Tuned(TypedDict):
    """What was chosen for an arm."""

    lr: float
    steps: int


def tuned(arm: Arm, generator: int, spec: JudgeSpec, data: Data, device: torch.device | str = "cpu") -> JudgeSpec:
    """The spec with the learning rate and steps whose `spec.seeds` judges have the best mean of `spec.metric` on
    `data.validation`.

    Of equals the shortest and slowest; a combination whose training diverges is out, but for the recipe's own, which
    raises. The seeds of these judges are no others'. Without `spec.tune`, or without validation images, the spec
    itself.
    """
    from engine.training.judge_fit import judge_one

    if not spec.tune or data.validation is None:
        return spec
    held, best = replace(data, test=data.validation, validation=None), (float("-inf"), spec)
    for number, (length, rate) in enumerate(itertools.product(LENGTHS, RATES)):
        own = spec.model_copy(update={"lr": spec.lr * rate, "steps": spec.steps * length})
        seeds = [derive(generator, "tune", k) for k in range(spec.seeds)]
        try:
            found = [judge_one(arm, seed, own, held, device).value(spec.metric) for seed in seeds]
        except ConfigError:
            if not number:
                raise
            continue
        best = max(best, (sum(found) / len(found), own), key=lambda one: one[0])
    return best[1]


def tuned_once(
    store: Store, name: str, arm: Arm, generator: int, spec: JudgeSpec, data: Data, device: torch.device | str = "cpu"
) -> JudgeSpec:
    """The same, published as `name` so that every judge of the arm has it; two workers that find it missing choose
    alike."""
    if not spec.tune:
        return spec
    if not store.exists(name):
        found = tuned(arm, generator, spec, data, device)
        store.create(name, json.dumps({"lr": found.lr, "steps": found.steps}, sort_keys=True).encode())
    chosen = documents.read(store, name, Tuned)
    return spec.model_copy(update={"lr": chosen["lr"], "steps": chosen["steps"]})
