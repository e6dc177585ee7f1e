"""What `mimeo train` found: each arm over its seeds with intervals, and paired differences to the reference arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NotRequired

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from typing_extensions import TypedDict

from engine import output
from engine.evaluation.run_summary import bracket
from engine.statistics.comparison import compare
from engine.statistics.intervals import binomial_error, ratio_interval, spread
from engine.statistics.published import Compared, Interval, Spread
from engine.storage.store import Store
from engine.training.classifier.classifier_arms import arms, reference
from engine.training.classifier.classifier_run import Plan, results
from engine.training.trainingresults import ClassifierResult

RESULT = output.TRAIN
LEVEL = 0.95
COVERS = (
    "Intervals are 95 % Student-t intervals over the classifier's seeds (weights, order, "
    "augmentation, subset), differences are "
    "paired by seed with Holm's correction over the arms. They cover one synthetic set "
    "and one test split: on arms that hold "
    "images of that one generator seed there is no verdict."
)


class MeasuredValues(Spread):
    """One measure of an arm over its seeds."""

    values: list[float]


class ArmMeasures(TypedDict):
    """What an arm's classifiers have on the test split; no `top5` with five classes or fewer."""

    top1: MeasuredValues
    top5: NotRequired[MeasuredValues]
    nll: MeasuredValues
    ece: MeasuredValues


class ClassifierArm(ArmMeasures):
    """An arm of `results/train.json`; `drawn`: the different images it could draw, by source."""

    classifiers: list[str]
    images: dict[str, int]
    drawn: list[int]
    test_error: float
    ratio: float | None
    ratio_interval: Interval
    correct_per_class: list[float]
    per_class: list[float | None]
    seconds: float


class TrainResult(TypedDict):
    """`results/train.json`."""

    arms: dict[str, ClassifierArm]
    differences: list[Compared]
    reference: str
    class_names: list[str]
    n_train: int
    n_test: int
    test_per_class: list[int]
    steps: int
    parameters: int
    seeds: int
    level: float
    covers: str
    recipe: dict[str, object]


def summary(planned: Plan, store: Store) -> TrainResult:
    """Gather a finished training into `results/train.json`, and return it."""
    found = results(planned, store)
    labels = planned.catalog.split("test")["label"].to_numpy()
    by_arm = {arm.key: [r for r in found if r["arm"] == arm.key] for arm in arms(planned.train)}
    totals = np.bincount(labels, minlength=len(planned.catalog.class_names)).tolist()
    chosen = reference(planned.train)
    synthetic = [arm.key for arm in arms(planned.train) if arm.needs_synthetic or arm.kind == "reconstructed"]
    if chosen in synthetic:
        synthetic = list(by_arm)
    tops = {key: _tops(own) for key, own in by_arm.items()}
    result: TrainResult = {
        "arms": {key: _arm(own, by_arm[chosen], totals, key == chosen) for key, own in by_arm.items()},
        "differences": [c.to_json() for c in compare(tops, chosen, one_generator=synthetic)],
        "reference": chosen,
        "class_names": list(planned.catalog.class_names),
        "n_train": planned.catalog.split("train").num_rows,
        "n_test": len(labels),
        "test_per_class": totals,
        "steps": found[0]["steps"],
        "parameters": found[0]["parameters"],
        "seeds": planned.train.seeds,
        "level": LEVEL,
        "covers": COVERS,
        "recipe": planned.train.model_dump(mode="json"),
    }
    store.replace(RESULT, json.dumps(result, indent=1, sort_keys=True, allow_nan=False).encode())
    return result


def _tops(found: Sequence[ClassifierResult]) -> list[float]:
    return [r["test"]["top1"] for r in found]


def _arm(
    own: Sequence[ClassifierResult], real: Sequence[ClassifierResult], totals: Sequence[int], is_reference: bool
) -> ClassifierArm:
    tests = [r["test"] for r in own]
    n, correct = tests[0]["images"], np.mean([t["correct"] for t in tests], axis=0)
    measures: ArmMeasures = {
        "top1": _values(_tops(own)),
        "nll": _values([t["nll"] for t in tests], bounded=False),
        "ece": _values([t["ece"] for t in tests]),
    }
    if tests[0]["top5"] is not None:
        measures["top5"] = _values([t["top5"] for t in tests if t["top5"] is not None])
    compared = not is_reference and sum(_tops(real)) > 0
    return {
        "classifiers": [r["classifier"] for r in own],
        "images": own[0]["images"],
        "drawn": own[0]["drawn"],
        **measures,
        "test_error": binomial_error(float(np.mean(_tops(own))), n),
        "ratio": float(np.mean(_tops(own)) / np.mean(_tops(real))) if compared else None,
        "ratio_interval": ratio_interval(_tops(own), _tops(real), LEVEL).as_list() if compared else [None, None],
        "correct_per_class": correct.tolist(),
        "per_class": [float(c) / t if t else None for c, t in zip(correct, totals, strict=True)],
        "seconds": round(sum(r["curve"]["seconds"] for r in own), 3),
    }


def _values(values: list[float], *, bounded: bool = True) -> MeasuredValues:
    return {"values": values, **spread(values, LEVEL, bounded=bounded)}


def table(result: TrainResult) -> Table:
    """The summary for a terminal: arm, images it could draw, top-1, top-5, calibration, difference to the reference."""
    out = Table(
        title=(
            f"{result['recipe']['model']}, {result['steps']:,} steps an arm, {result['n_test']:,} "
            f"real test images, {result['seeds']} seeds"
        ),
        caption=(
            f"means with 95 % intervals over seeds; differences to {result['reference']} are "
            "paired by seed, in points; higher or lower where they are not noise; no verdict on one generator seed"
        ),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title_justify="left",
        caption_justify="left",
    )
    out.add_column("trained on", no_wrap=True)
    for column in ("images", "top-1 %", "top-5 %", "ECE", "difference", ""):
        out.add_column(column, justify="right", no_wrap=True)
    against = {entry["arm"]: entry for entry in result["differences"]}
    for key, arm in result["arms"].items():
        top5, other = arm.get("top5"), against.get(key)
        out.add_row(
            key,
            " + ".join(f"{count:,}" for count in arm["drawn"]),
            Text(f"{arm['top1']['mean'] * 100:.1f}{bracket(arm['top1']['interval'], 100)}"),
            f"{top5['mean'] * 100:.1f}" if top5 else "",
            f"{arm['ece']['mean']:.3f}",
            Text(f"{other['difference'] * 100:+.1f}{bracket(other['interval'], 100)}" if other else ""),
            other["finding"] if other and other["finding"] in ("higher", "lower") else "",
        )
    return out
