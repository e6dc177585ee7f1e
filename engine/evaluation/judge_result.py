"""What the synthetic set is worth to a classifier: each arm's accuracy and its ratio to real, with paired intervals."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from engine import output
from engine.cluster.progress import Reporter
from engine.evaluation import controls
from engine.evaluation.audit import Audit
from engine.evaluation.evaluationresults import Copies, Judged, JudgedArm
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.statistics.intervals import binomial_error, ratio_interval, spread
from engine.storage.store import Store
from engine.training import judge_fit
from engine.training import judge_training as training
from engine.training.judge_data import codec, resolution
from engine.training.judge_fit import Arm, Outcome

RESULT = output.JUDGE
LEVEL = 0.95
TOP_CONFUSIONS = 200
COVERS = (
    "Intervals are 95 % Student-t intervals over the judge seeds (ratios: Fieller's, "
    "paired by seed). They cover what the "
    "judge's own randomness does, for this one synthetic set of this one generator on this one test split: not another "
    "generator seed, nor another draw of real or test images. The test set's own sampling "
    "error stands beside as binomial "
    "standard error."
)


def judge(spec: RunSpec, catalog: Catalog, store: Store, progress: Reporter) -> Judged:
    """Train the judges of every arm and seed that are not there yet and publish `results/judge.json`, which is
    returned.

    Before, the synthetic set is audited for copies, and the controls are made that it must beat
    (`results/copies.json`). Raises ConfigError before training where a multiple exceeds what was generated, DataError
    where the synthetic set is not the sealed one. Call inside a Ray session.
    """
    spec = training.filled(spec, catalog.split("train").num_rows)
    planned = controls.plan(spec, store)
    audited = Audit(spec, catalog, store, progress, planned)
    outcomes = training.outcomes(spec, catalog, store, progress, planned.arms, audited.prepare)
    copies = audited.copies()
    labels = catalog.split("test")["label"].to_numpy()
    test_per_class = np.bincount(labels, minlength=len(catalog.class_names)).tolist()
    result: Judged = {
        "arms": _with_copies(
            compare(outcomes, (*judge_fit.arms(spec.judge), *planned.arms), test_per_class, spec.judge.metric), copies
        ),
        "metric": spec.judge.metric,
        "copies": copies,
        "left_out": planned.left_out,
        "class_names": list(catalog.class_names),
        "n_train": catalog.split("train").num_rows,
        "n_test": len(labels),
        "test_per_class": test_per_class,
        "seeds": list(range(spec.judge.seeds)),
        "level": LEVEL,
        "covers": COVERS,
        "codec": codec(spec),
        "resolution": resolution(spec),
        "parameters": outcomes[0].parameters,
        "recipe": spec.judge.model_dump(mode="json"),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 3),
    }
    store.replace(RESULT, json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode())
    return result


def compare(
    outcomes: Sequence[Outcome], arms: Sequence[Arm], test_per_class: Sequence[int], metric: str = "accuracy"
) -> dict[str, JudgedArm]:
    """Each arm's statistics by its key, in the order of `arms`; `ratio` and its interval are None without a real arm.

    Arms with synthetic images have `control` where there is one: the best control against them.
    """
    by_arm = {arm.key: sorted((o for o in outcomes if o.arm == arm.key), key=lambda o: o.seed) for arm in arms}
    real = [outcome.value(metric) for outcome in by_arm.get("real", [])]
    told = {arm.key: _arm(arm, by_arm[arm.key], real, test_per_class, metric) for arm in arms}
    beside = controls.against(told)
    return {key: arm | ({"control": beside[key]} if key in beside else {}) for key, arm in told.items()}


def _with_copies(arms: Mapping[str, JudgedArm], copies: Copies | None) -> dict[str, JudgedArm]:
    """The arms, those with synthetic images with their part of the audit."""
    sets = copies["sets"] if copies is not None else {}
    with_synthetic = {key for key, arm in arms.items() if arm["kind"] in ("synthetic", "mixed")}
    return {
        key: arm
        | ({"copies": sets[str(arm["multiple"])]} if key in with_synthetic and str(arm["multiple"]) in sets else {})
        for key, arm in arms.items()
    }


def _arm(
    arm: Arm, outcomes: Sequence[Outcome], real: Sequence[float], test_per_class: Sequence[int], metric: str
) -> JudgedArm:
    values, accuracies = ([outcome.value(name) for outcome in outcomes] for name in (metric, "accuracy"))
    told, mean = spread(values, LEVEL), float(np.mean(values))
    held = [outcome.validation for outcome in outcomes if outcome.validation is not None]
    compared = arm.kind != "real" and bool(real) and sum(real) > 0
    return {
        "kind": arm.kind,
        "multiple": arm.multiple,
        "real_images": outcomes[0].real_images,
        "synthetic_images": outcomes[0].synthetic_images,
        "accuracies": accuracies,
        "values": values,
        "validation": held if len(held) == len(outcomes) else None,
        "mean": told["mean"],
        "sd": told["sd"],
        "interval": told["interval"],
        "measures": controls.measures(outcomes, LEVEL),
        "test_error": binomial_error(float(np.mean(accuracies)), sum(test_per_class)),
        "ratio": mean / float(np.mean(real)) if compared else None,
        "ratio_interval": ratio_interval(values, real, LEVEL).as_list() if compared else [None, None],
        "per_class": _per_class(outcomes, test_per_class),
        "confusions": _confusions(outcomes),
        "loss": float(np.mean([outcome.loss for outcome in outcomes])),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 3),
    }


def _per_class(outcomes: Sequence[Outcome], test_per_class: Sequence[int]) -> list[float | None]:
    """Accuracy on each class, mean over seeds; None for a class without test images."""
    correct = np.mean([outcome.correct for outcome in outcomes], axis=0)
    return [float(c) / n if n else None for c, n in zip(correct, test_per_class, strict=True)]


def _confusions(outcomes: Sequence[Outcome]) -> list[tuple[int, int, float]]:
    """The commonest mistakes as [true, predicted, mean count a judge], largest first."""
    total: Counter[tuple[int, int]] = Counter()
    for outcome in outcomes:
        total.update({(true, predicted): count for true, predicted, count in outcome.confusions})
    ordered = sorted(total.items(), key=lambda item: (-item[1], item[0]))[:TOP_CONFUSIONS]
    listed = [[true, predicted, count / len(outcomes)] for (true, predicted), count in ordered]
    return cast(list[tuple[int, int, float]], listed)  # lists, as in JSON
