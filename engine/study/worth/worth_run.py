"""`mimeo study worth`: real, controls, synthetic and mixed over several generator seeds, with the copy share beside
each ratio."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from engine import output
from engine.cluster.progress import Reporter
from engine.evaluation.evaluationresults import SpaceCopies
from engine.images.catalog import Catalog
from engine.spec import RunSpec, identity
from engine.spec.studies import WorthSpec
from engine.statistics.comparison import compare, population
from engine.statistics.intervals import ratio_interval, spread
from engine.statistics.nested import generator_seeds
from engine.statistics.population import Floats
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.study import trials
from engine.study.ablation_arms import changed
from engine.study.judge_reading import need_validation, shares
from engine.study.publishedresults import MeanValues, WorthArm, WorthCopies, WorthResult, WorthSpace
from engine.study.trials import Trial
from engine.study.worth import worth_trial
from engine.study.worth.worth_trial import WorthKind, WorthTrial
from engine.training.judge_data import real_images
from engine.training.judge_training import check as check_judge
from engine.training.judge_training import filled

RESULT = output.WORTH
COVERS = (
    "A value is a generator seed's, the mean of its judges, whose seeds no other "
    "generator seed has. Intervals are 95 % Student-t "
    "intervals over generator seeds; those of the population hold the sampling of test "
    "images too. The reference is the best "
    "training set of real images alone by validation images, with judges of other seeds "
    "than those that read the test split; "
    "p are adjusted by Holm over all arms with synthetic images. One draw of training images is not another."
)


def section(spec: RunSpec) -> WorthSpec:
    """The recipe's section, or the default one."""
    return spec.worth or WorthSpec()


def check(spec: RunSpec) -> None:
    """Refuse, before Ray starts, a study that has no images to choose its reference on (ConfigError)."""
    need_validation(float(spec.split.validation), "a study of worth")


def worth(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter) -> WorthResult:
    """Run every generator seed that has no result yet; writes and returns results/worth.json. Call it inside a Ray
    session.

    Each seed publishes its result on its own, so a study that was cut short goes on, and one with more seeds adds them.
    """
    n, held, tested = (catalog.split(name).num_rows for name in ("train", "validation", "test"))
    need_validation(held, "a study of worth")
    check_judge(spec, n, tested)
    spec = filled(spec, n)
    plan = [changed(spec, {}, seed) for seed in generator_seeds(spec.seed, section(spec).seeds)]
    pending = trials.missing(store, [_trial(one) for one in plan], "worth")
    if pending:
        _run(spec, catalog, store, reporter, pending)
    found = [documents.read(store, worth_trial.name(one.seed), WorthTrial) for one in plan]
    result = summary(spec, found)
    result["training_images"] = n
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())
    return result


def _trial(spec: RunSpec) -> Trial:
    return Trial(f"generator seed {spec.seed}", worth_trial.name(spec.seed), identity(spec), spec)


def _run(spec: RunSpec, catalog: Catalog, store: Store, reporter: Reporter, pending: Sequence[Trial]) -> None:
    with reporter.task("judge: real images", catalog.table.num_rows) as task:
        train, *others = (catalog.split(name) for name in ("train", "validation", "test"))
        read = [real_images(spec, rows, task, same_codec=rows is train) for rows in (train, *others)]
    for trial in pending:
        judges = [f"{trial.work.seed}-{number}" for number in range(spec.judge.seeds)]
        readings.note(store, "study worth", trial.key, ["all"], judges, others[-1].num_rows)
    images = worth_trial.Images(store.url, catalog, *read)
    trials.run(worth_trial.run, images, pending, store, spec.resources, reporter, "worth")


def summary(spec: RunSpec, found: Sequence[WorthTrial]) -> WorthResult:
    """Every arm over the generator seeds, the reference, comparisons with it, and the copy shares; `found` a seed
    each."""
    metric, kinds = spec.judge.metric, dict(sorted(found[0]["kinds"].items(), key=_order))
    values = {way: _values(found, way, metric) for way in ("validation", "test")}
    alone = [arm for arm, own in kinds.items() if own["kind"] not in ("synthetic", "mixed")]
    reference = max(alone, key=lambda arm: float(np.mean(values["validation"][arm])))
    made = [arm for arm in kinds if arm not in alone]
    test = values["test"]
    right = {arm: _right(found, arm) for arm in [reference, *made]} if metric == "accuracy" else None
    compared = compare(
        {arm: test[arm] for arm in [reference, *made]}, reference, right=right, effect=section(spec).effect
    )
    return {
        "name": spec.name,
        "metric": metric,
        "seeds": [one["seed"] for one in found],
        "judge_seeds": spec.judge.seeds,
        "images": found[0]["images"],
        "reference": reference,
        "validation": {arm: float(np.mean(values["validation"][arm])) for arm in alone},
        "arms": {arm: _arm(found, arm, metric, test, right) for arm in kinds},
        "comparisons": [one.to_json() for one in compared],
        "copies": _copies(found),
        "fidelity": {
            key: {
                "kid": [one["fidelity"][key]["kid"] for one in found],
                "frechet": [one["fidelity"][key]["frechet"] for one in found],
            }
            for key in found[0]["fidelity"]
        },
        "left_out": found[0]["left_out"],
        "effect": section(spec).effect,
        "covers": COVERS,
        "recipe": identity(spec),
    }


def _order(item: tuple[str, WorthKind]) -> tuple[int, int]:
    kinds = ("real", "duplicated", "photocopy", "reconstructed", "augmented", "synthetic", "mixed")
    return kinds.index(item[1]["kind"]), item[1]["multiple"]


def _values(found: Sequence[WorthTrial], way: str, metric: str) -> dict[str, list[float]]:
    """Each arm's value a generator seed, the mean over its judges."""
    return {
        arm: [float(np.mean([value or 0.0 for value in one["arms"][arm][way][metric]])) for one in found]
        for arm in found[0]["kinds"]
    }


def _right(found: Sequence[WorthTrial], arm: str) -> Floats:
    """(G, N): the share of a generator seed's judges that have each test image right."""
    return np.stack([shares(one["arms"][arm]["test"]["right"], one["images"]["test"]) for one in found])


def _arm(
    found: Sequence[WorthTrial],
    arm: str,
    metric: str,
    test: Mapping[str, list[float]],
    right: Mapping[str, Floats] | None,
) -> WorthArm:
    own, real = test[arm], test.get("real")
    others = {
        name: values[arm]
        for name in ("balanced_accuracy", "macro_f1", "auroc")
        if (values := _values(found, "test", name))
    }
    return {
        **found[0]["kinds"][arm],
        "values": own,
        **spread(own),
        "population": population(right[arm]) if right and arm in right else [None, None],
        "ratio": float(np.mean(own)) / float(np.mean(real)) if real and arm != "real" else None,
        "ratio_interval": ratio_interval(own, real).as_list() if real and arm != "real" else [None, None],
        "measures": {name: float(np.mean(values)) for name, values in others.items()},
    }


def _copies(found: Sequence[WorthTrial]) -> dict[str, WorthCopies]:
    """By multiple: copy share and membership AUC a generator seed in both spaces, with means, and how many sets are
    called copies."""
    out: dict[str, WorthCopies] = {}
    for multiple in found[0]["copies"]["sets"]:
        sets = [one["copies"]["sets"][multiple] for one in found]
        out[multiple] = {
            "pixels": _space([own["pixels"] for own in sets]),
            "features": _space([own["features"] for own in sets]),
            "called_copies": sum(own["verdict"] == "copies" for own in sets),
        }
    return out


def _space(found: Sequence[SpaceCopies]) -> WorthSpace:
    return {
        "share": _mean([own["share"] for own in found]),
        "auc": _mean([own["auc"] for own in found]),
        "median": _mean([own["median"] for own in found]),
    }


def _mean(values: list[float]) -> MeanValues:
    return {"values": values, "mean": float(np.mean(values))}
