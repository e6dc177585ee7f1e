"""Judged outputs without training: outcomes with given accuracies, compared and published by the engine itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.evaluation import controls
from engine.evaluation.judge_result import judge
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training.judge_fit import Outcome, arms
from engine.training.judge_training import outcome_name
from tests.support.synthetic import Quiet


def outcome(arm: str, seed: int, per_class: Sequence[float], sizes: Sequence[int], images: tuple[int, int]) -> Outcome:
    """A judge that is right on the given share of each class and takes the rest for the next class."""
    correct = [round(share * size) for share, size in zip(per_class, sizes, strict=True)]
    wrong = [(k, (k + 1) % len(sizes), size - c) for k, (c, size) in enumerate(zip(correct, sizes, strict=True))]
    return Outcome(
        arm=arm,
        seed=seed,
        real_images=images[0],
        synthetic_images=images[1],
        accuracy=sum(correct) / sum(sizes),
        correct=correct,
        confusions=sorted((w for w in wrong if w[2]), key=lambda w: (-w[2], w)),
        loss=0.1,
        parameters=17082,
        seconds=1.5,
        device="cpu",
        balanced_accuracy=float(np.mean([c / size for c, size in zip(correct, sizes, strict=True) if size])),
        macro_f1=sum(correct) / sum(sizes),  # planted, as is the area
        auroc=0.5 + sum(correct) / sum(sizes) / 2,
    )


def publish_outcomes(
    store: Store, spec: RunSpec, catalog: Catalog, shares: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Publish outcomes and `results/judge.json`; `shares` has, by arm, each seed's accuracy, one number or one a class.

    The set's copies are measured as they are.
    """
    labels = catalog.split("test")["label"].to_numpy()
    sizes = np.bincount(labels, minlength=len(catalog.class_names)).tolist()
    n = catalog.split("train").num_rows
    for arm in (*arms(spec.judge), *controls.plan(spec, store).arms):
        made = arm.multiple * n if arm.kind in ("synthetic", "mixed") else 0
        real = 0 if arm.kind == "synthetic" else arm.multiple * n if arm.kind == "photocopy" else n
        for seed in range(spec.judge.seeds):
            share = shares[arm.key][seed]
            per_class = [share] * len(sizes) if isinstance(share, float) else share
            found = outcome(arm.key, seed, per_class, sizes, (real, made))
            store.create(outcome_name(arm.key, seed), json.dumps(asdict(found)).encode())
    return judge(spec, catalog, store, Quiet())
