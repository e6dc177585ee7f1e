"""Evaluates classifiers on other sets, under corruptions and on the gap: all pieces, then one result with intervals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine import output
from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.evaluation import classifiers as sources
from engine.evaluation import ood
from engine.evaluation.classifiers import Named
from engine.evaluation.corruptions import STYLE
from engine.evaluation.evaluation_precheck import asked_of
from engine.evaluation.evaluationresults import (
    PIECES,
    ArmGroup,
    ArmValues,
    AucFound,
    Corruptions,
    Counts,
    Evaluated,
    EvaluatedSet,
    Gap,
    GapFound,
    GapPair,
    Overlap,
    PairFound,
    Separation,
    SetCounts,
)
from engine.evaluation.gap import Auc
from engine.evaluation.units import FOLDER, PAIRS, Config, Unit, loop, units
from engine.images.catalog import Catalog
from engine.spec import RunSpec, digest
from engine.spec.evaluation import OWN, EvaluateSpec
from engine.statistics.comparison import compare
from engine.statistics.intervals import binomial_error, spread
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.training import judge_training
from engine.training.setup import run

RESULT = output.EVALUATE
LEVEL = 0.95
REFERENCE = "real"
NO_GENERATOR = re.compile(
    r"(real|duplicated)(_|$)|few_shot_[0-9]+$"
)  # arms whose classifiers have seen nothing of a generator
COVERS = (
    "Intervals are 95 % Student-t intervals over the classifiers' seeds, differences to "
    "the real arm paired by seed, with "
    "Holm's adjustment over the arms of one set: for this one synthetic set of one "
    "generator seed, so there is no verdict on arms "
    "that hold synthetic images. The sampling error of each "
    "set's images stands beside as binomial standard error."
)
COVERS_GAP = (
    "AUC: mean over the classifiers of images of the training split, 5-fold or as set, "
    "cross-validated; 95 % intervals hold "
    "the sampling of images (DeLong, with Nadeau and Bengio's correction for overlapping "
    "folds) for one synthetic set. 0.5: "
    "the two cannot be told apart. Train against held-out real images is the yardstick: "
    "what that says is no gap of synthesis."
)


def needs_synthetic(spec: RunSpec, store: Store) -> bool:
    """Whether the synthetic set must be there: for a judge of it that is not trained yet, or for the gap."""
    if asked_of(spec).gap is not None:
        return True
    return any(not named.saved and named.arm != "real" for named in sources.listed(spec, store))


def settings(spec: RunSpec, listed: Sequence[Named]) -> str:
    """What a finished result must have been made of."""
    asked = asked_of(spec).model_dump(mode="json")
    return digest({"evaluate": asked, "classifiers": [[named.name, named.saved] for named in listed]})


def finished(spec: RunSpec, store: Store) -> Evaluated | None:
    """The published result, where it is that of these settings and classifiers."""
    if not store.exists(RESULT):
        return None
    found = documents.read(store, RESULT, Evaluated)
    return found if found["settings"] == settings(spec, sources.listed(spec, store)) else None


def evaluate(spec: RunSpec, catalog: Catalog, store: Store, progress: Reporter) -> Evaluated:
    """Train the judges that are needed, make every piece that is not there yet, and publish `results/evaluate.json`.

    Call inside a Ray session. Raises ConfigError or DataError for sets that cannot be evaluated on.
    """
    asked, listed = asked_of(spec), sources.listed(spec, store)
    for name, one in asked.sets.items():
        ood.open_set(name, one, spec, catalog.class_names)
    if not any(named.saved for named in listed):
        judge_training.check(
            spec.model_copy(update={"judge": sources.judge_spec(spec, store)}),
            catalog.split("train").num_rows,
            catalog.split("test").num_rows,
        )
    sources.train(spec, catalog, store, progress, listed)
    pieces = units(asked, listed)
    pending = [unit for unit in pieces if not store.exists(unit.path)]
    if pending:
        _note(store, catalog, listed, pending)
        board = Board.create()
        config: Config = {
            "units": pending,
            "classifiers": listed,
            "spec": spec,
            "catalog": catalog,
            "store": store,
            "board": board,
        }
        with follow(board, progress):
            resources = judge_training.workers(spec.resources, len(pending))
            run(loop, config, name="evaluate", resources=resources)
    found = {(unit.kind, unit.name): documents.read(store, unit.path, PIECES[unit.kind]) for unit in pieces}
    result = assemble(spec, listed, catalog.class_names, found)
    store.replace(RESULT, json.dumps(result, indent=1, allow_nan=False).encode())  # sets and arms in their order
    _tidy(store, pieces)
    return result


def _note(store: Store, catalog: Catalog, listed: Sequence[Named], pending: Sequence[Unit]) -> None:
    """Write down who reads the run's own test split: as it is, corrupted, or as what is held out of a gap."""
    arms = [named.arm for named in listed]
    for kind in dict.fromkeys(unit.kind for unit in pending if unit.kind != "set" or unit.name == OWN):
        names = [f"{unit.path}/{named.name}" for unit in pending if unit.kind == kind for named in listed]
        readings.note(store, "evaluate", kind, arms, names, catalog.split("test").num_rows)


def _tidy(store: Store, pieces: Sequence[Unit]) -> None:
    """Remove pieces of other settings, which nothing names any more."""
    kept = {unit.path for unit in pieces}
    for name in [entry.name for entry in store.list(f"{FOLDER}/") if entry.name.endswith(".json")]:
        if name not in kept:
            store.remove(name)


def assemble(
    spec: RunSpec, listed: Sequence[Named], class_names: Sequence[str], found: Mapping[tuple[str, str], Any]
) -> Evaluated:
    """One result of all pieces, `found` by (kind, name)."""
    asked = asked_of(spec)
    result: Evaluated = {
        "settings": settings(spec, listed),
        "classifiers": "saved" if any(named.saved for named in listed) else "judges",
        "seeds": {arm: [named.seed for named in own] for arm, own in _by_arm(listed).items()},
        "class_names": list(class_names),
        "level": LEVEL,
        "covers": COVERS,
        "sets": {name: _set(found["set", name], listed, class_names) for name in (OWN, *asked.sets)},
        "corruptions": None,
        "gap": None,
    }
    if asked.corruptions is not None:
        kinds = {str(kind): found["corruption", kind] for kind in dict.fromkeys(asked.corruptions.kinds)}
        result["corruptions"] = _corruptions(kinds, listed)
    gaps = [piece for (kind, _), piece in found.items() if kind == "gap"]
    if gaps:
        result["gap"] = _gap(gaps, asked)
    return result


def _by_arm(listed: Sequence[Named]) -> dict[str, list[Named]]:
    arms: dict[str, list[Named]] = {}
    for named in sorted(listed, key=lambda named: named.seed):
        arms.setdefault(named.arm, []).append(named)
    order = {named.arm: k for k, named in reversed(list(enumerate(listed)))}
    return dict(sorted(arms.items(), key=lambda item: order[item[0]]))


def arms_of(values: Mapping[str, float], listed: Sequence[Named]) -> ArmGroup:
    """Each arm's mean, sd and interval over seeds, and the paired comparisons with the real arm; `values` by
    classifier."""
    arms = _by_arm(listed)
    own = {arm: [values[named.name] for named in names] for arm, names in arms.items()}
    told = {arm: _values(numbers) for arm, numbers in own.items()}
    seeds = {arm: [named.seed for named in names] for arm, names in arms.items()}
    paired = {arm: numbers for arm, numbers in own.items() if seeds[arm] == seeds.get(REFERENCE)}
    synthetic = [arm for arm in paired if not NO_GENERATOR.match(arm)]
    comparisons = (
        [entry.to_json() for entry in compare(paired, REFERENCE, one_generator=synthetic)] if len(paired) > 1 else []
    )
    return {"arms": told, "comparisons": comparisons}


def _values(numbers: list[float]) -> ArmValues:
    told = spread(numbers, LEVEL)
    return {"values": numbers, "mean": told["mean"], "sd": told["sd"], "interval": told["interval"]}


def _set(piece: SetCounts, listed: Sequence[Named], class_names: Sequence[str]) -> EvaluatedSet:
    images = int(sum(piece["images"]))
    told = arms_of({name: sum(right) / images for name, right in piece["right"].items()}, listed)
    for entry in told["arms"].values():
        entry["test_error"] = binomial_error(entry["mean"], images)
    return {
        **told,
        "images": images,
        "per_class": piece["images"],
        "classes": [class_names[k] for k in piece["classes"]],
        "restricted": piece["restricted"],
        "left_out": piece["left_out"],
        "bad": piece["bad"],
        "trained_on": piece["trained_on"],
    }


def _corruptions(kinds: Mapping[str, Mapping[str, Counts]], listed: Sequence[Named]) -> Corruptions:
    def accuracy(told: Counts, name: str) -> float:
        return float(sum(told["right"][name]) / sum(told["images"]))

    names = [named.name for named in listed]
    each = {
        kind: {name: float(np.mean([accuracy(told, name) for told in piece.values()])) for name in names}
        for kind, piece in kinds.items()
    }
    mean = {name: float(np.mean([values[name] for values in each.values()])) for name in names}
    arms = _by_arm(listed)
    return {
        "note": STYLE,
        "mean": arms_of(mean, listed),
        "kinds": {
            kind: {
                **arms_of(each[kind], listed),
                "severities": {
                    severity: {
                        arm: float(np.mean([accuracy(told, named.name) for named in own])) for arm, own in arms.items()
                    }
                    for severity, told in piece.items()
                },
            }
            for kind, piece in kinds.items()
        },
    }


def _gap(pieces: Sequence[GapFound], asked: EvaluateSpec) -> Gap:
    assert asked.gap is not None
    return {
        "covers": COVERS_GAP,
        "images": pieces[0]["images"],
        "folds": asked.gap.folds,
        "dimensions": asked.gap.dimensions,
        "classifiers": len(pieces),
        "pairs": {pair: _pair([piece["pairs"][pair] for piece in pieces]) for pair in PAIRS},
    }


def _pair(own: Sequence[PairFound]) -> GapPair:
    """Means over classifiers; the AUC's error is the mean of theirs, as they all look at the same images."""
    classes = [_overlap([piece["classes"][k] for piece in own]) for k in range(len(own[0]["classes"]))]
    return {
        "features": _separation([piece["features"] for piece in own]),
        "pixels": _separation([piece["pixels"] for piece in own]),
        "classes": classes,
        "mean": _overlap(classes),
    }


def _separation(found: Sequence[AucFound]) -> Separation:
    values = [one["value"] for one in found]
    auc = Auc(float(np.mean(values)), float(np.mean([one["error"] for one in found])))
    return {"values": values, "auc": auc.value, "error": auc.error, "interval": auc.interval.as_list()}


def _overlap(found: Sequence[Overlap]) -> Overlap:
    return {
        "cka": _mean([one["cka"] for one in found]),
        "angle": _mean([one["angle"] for one in found]),
        "shift": _mean([one["shift"] for one in found]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
