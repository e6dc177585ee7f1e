"""One generator seed: its set is drawn, audited for copies, and every arm and control is judged, on validation and on
test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from typing_extensions import TypedDict

from engine import output
from engine.cluster.board import Board
from engine.cluster.progress import Task
from engine.evaluation import audit, controls
from engine.evaluation.evaluationresults import AuditedCopies, AuditedSets, HeldOutSplit
from engine.evaluation.fidelity import Distances, distances
from engine.evaluation.nearest import FeatureSpace
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec
from engine.statistics.nested import judge_seeds
from engine.storage.store import Store
from engine.study.judge_reading import packed
from engine.study.trial import Shared, quiet, reporter, synthetic_set, train_generator
from engine.training.judge_data import Arrays, synthetic_images
from engine.training.judge_fit import Arm, Data, arms, fit
from engine.training.measures import METRICS, measured
from engine.training.trainingresults import ArmKind


@dataclass(frozen=True)
class Images:
    """What all generator seeds share: the catalog, and what judges see of each split."""

    url: str
    catalog: Catalog
    train: Arrays
    validation: Arrays
    test: Arrays


class WorthKind(TypedDict):
    """What a training set holds."""

    kind: ArmKind
    multiple: int


class WorthFacts(TypedDict):
    """One generator seed of a study of worth: by arm and split the metrics and right answers of its judges, and its
    copies."""

    seed: int
    images: dict[str, int]
    arms: dict[str, dict[str, dict[str, list[Any]]]]
    kinds: dict[str, WorthKind]
    left_out: dict[str, str]
    fidelity: dict[str, Distances]
    copies: AuditedSets


class WorthTrial(WorthFacts):
    """The same beside the settings that it was made with."""

    settings: dict[str, object]


def name(seed: int) -> str:
    """Where the result of a generator seed lies."""
    return f"{output.WORTH_TRIALS}/seed-{seed}.json"


def judged(spec: RunSpec, planned: controls.Planned) -> list[Arm]:
    """Every training set; the spec has its multiples written out."""
    return [*arms(spec.judge), *planned.arms]


def run(shared: Images, spec: RunSpec, device: str, board: Board | None = None) -> WorthFacts:
    """The seed's result. Judges that are scored on validation images are others than those that read
    the test split."""
    given = Shared(shared.url, shared.catalog, shared.train, shared.test, board=board)
    store = synthetic_set(spec, "worth", train_generator(spec, given, device), given, device)
    planned = controls.plan(spec, store)
    data = _data(spec, store, shared)
    multiples = sorted({arm.multiple for arm in arms(spec.judge) if arm.multiple})
    split: HeldOutSplit = "validation" if len(shared.validation.labels) >= audit.FEWEST else "test"
    held = shared.validation if split == "validation" else shared.test
    copies = audit.audited(spec, data, held, split, multiples, planned.arms, device)
    data = _with_controls(spec, data, planned, copies, shared, device)
    wanted, count = judged(spec, planned), spec.judge.seeds
    seeds = judge_seeds(spec.seed, 2 * count)
    ways = {"validation": (shared.validation, seeds[count:]), "test": (shared.test, seeds[:count])}
    with reporter(given, spec.seed).task("judges", 2 * count * len(wanted), "judges") as task:
        judged_arms = {
            arm.key: {
                way: _judge(arm, own, spec.judge, data, images, device, task) for way, (images, own) in ways.items()
            }
            for arm in wanted
        }
    return {
        "seed": spec.seed,
        "images": {way: len(images.labels) for way, (images, _) in ways.items()},
        "arms": judged_arms,
        "kinds": {arm.key: {"kind": arm.kind, "multiple": arm.multiple} for arm in wanted},
        "left_out": planned.left_out,
        "fidelity": _fidelity(spec, data, held, multiples, device),
        "copies": cast(AuditedSets, {key: value for key, value in copies.items() if key != "pairs"}),
    }


def _data(spec: RunSpec, store: Store, shared: Images) -> Data:
    with quiet().task("judge: images", spec.generate.count) as task:
        synthetic = synthetic_images(spec, store, spec.generate.count, task)
    n = len(shared.train.labels)
    return Data(shared.train, shared.test, synthetic, n, len(shared.catalog.class_names))


def _fidelity(spec: RunSpec, data: Data, held: Arrays, multiples: list[int], device: str) -> dict[str, Distances]:
    """Distances of the set's beginnings, and of training images, to held-out images in the features that copies are
    measured in.

    Training images stand beside as many images that their own classifier has learnt, so theirs is a yardstick and no
    zero.
    """
    model, _, _ = fit(Arm("real"), 0, spec.judge, data, device)
    space, synthetic = FeatureSpace(model, device), data.synthetic
    assert synthetic is not None
    real = space.points(held.pixels).astype(np.float64)
    sets = {str(m): synthetic.below(m * data.n).pixels for m in multiples} | {"real": data.train.pixels}
    return {key: distances(space.points(pixels).astype(np.float64), real) for key, pixels in sets.items()}


def _with_controls(
    spec: RunSpec, data: Data, planned: controls.Planned, found: AuditedCopies, shared: Images, device: str
) -> Data:
    """The judges' data with what control arms train on."""
    from dataclasses import replace

    sets: dict[str, Arrays] = {}
    if found["photocopy"] is not None:
        count = max(arm.multiple for arm in arms(spec.judge)) * data.n
        sets["photocopy"] = controls.photocopies(data.train, count, found["photocopy"]["noise"], controls.seed_of(spec))
    if any(arm.kind == "reconstructed" for arm in planned.arms):
        pixels = audit.reconstructed(spec, shared.catalog.split("train"), planned.autoencoder, device)
        sets["reconstructed"] = Arrays(pixels, data.train.labels, data.train.index)
    kind = found["augmentation"]["kind"] if found["augmentation"] else data.augmentation
    return replace(data, controls=sets, augmentation=kind)


def _judge(
    arm: Arm, seeds: list[int], spec: JudgeSpec, data: Data, images: Arrays, device: str, task: Task
) -> dict[str, list[Any]]:
    """Each metric, a value a judge, and which images were right."""
    from engine.training import judge_model

    out: dict[str, list[Any]] = {metric: [] for metric in (*METRICS, "right")}
    for seed in seeds:
        model, _, _ = fit(arm, seed, spec, data, device)
        logits = judge_model.logits(model, images.part().pixels, device)
        right: Any = logits.argmax(1) == images.labels
        out["accuracy"].append(float(np.mean(right)))
        out["right"].append(packed(right))
        for metric, value in measured(logits, images.labels).items():
            out[metric].append(value)
        task.update(task.done + 1, arm=arm.key)
    return out
