"""Trains the judges: the same small CNN on real, synthetic, mixed and control data, one Ray Train run over all arms and
seeds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from engine import output
from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import ConfigError, DataError
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec, ResourcesSpec
from engine.storage import documents, readings
from engine.storage.store import Store
from engine.training.judge_data import Arrays, real_images, synthetic_images
from engine.training.measures import measured
from engine.training.setup import place, run
from engine.training.trainingresults import ArmKind

if TYPE_CHECKING:
    import torch

    from engine.training.judge_model import Judge, Part

FOLDER = output.JUDGES
MAX_CONFUSIONS = 200


@dataclass(frozen=True)
class Arm:
    """One training set: `real`, `synthetic_10x` (the first 10 n samples of the set), `mixed_10x` (both), or a control.

    Controls hold real images alone: `duplicated_10x`, `photocopy_10x` (with pixel noise), `reconstructed` (through the
    generator's VAE) and `augmented` (as strongly as is usual).
    """

    kind: ArmKind
    multiple: int = 0

    @property
    def key(self) -> str:
        """The arm's name in results."""
        return f"{self.kind}_{self.multiple}x" if self.multiple else self.kind


@dataclass(frozen=True)
class Outcome:
    """One trained judge: accuracy on the test split, correct answers a class, and its commonest mistakes.

    `real_images`, `synthetic_images`: how many different images it could draw; `confusions`: (true, predicted, count)
    with the largest counts first; `loss`: mean training loss at the end; `seconds`: its training. The measures at the
    end are None in outputs of before, and `auroc` where the test images are of one class. `validation`: the judge's
    metric on validation images, which advice goes by; None where there are none.
    """

    arm: str
    seed: int
    real_images: int
    synthetic_images: int
    accuracy: float
    correct: list[int]
    confusions: list[tuple[int, int, int]]
    loss: float
    parameters: int
    seconds: float
    device: str
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    auroc: float | None = None
    validation: float | None = None

    def value(self, metric: str) -> float:
        """One of `engine.training.measures.METRICS`; raises DataError where it is not known."""
        found = getattr(self, metric)
        if found is None:
            what = f"{metric} of {self.arm} with seed {self.seed} is not known"
            raise DataError("judge.metric", what, "it needs test images of two classes, and judges of this version")
        return float(found)


@dataclass(frozen=True)
class Data:
    """What the judges train and test on; multiples count in `n`, the size of the training split.

    `validation`: what advice goes by, and what `judge.tune` chooses on. `controls`: training sets of control arms by
    kind, where they are not `train` itself; `augmentation`: that of `augmented`.
    """

    train: Arrays
    test: Arrays
    synthetic: Arrays | None
    n: int
    classes: int
    controls: Mapping[str, Arrays] = field(default_factory=dict)
    augmentation: str = "randaugment+cutmix"
    validation: Arrays | None = None


def arms(spec: JudgeSpec) -> tuple[Arm, ...]:
    """The training sets that a spec asks for, real first; controls, which hang on what was generated, are not among
    them."""
    kinds = list(dict.fromkeys(spec.arms))
    found = [Arm("real")] if "real" in kinds else []
    return (*found, *(Arm(kind, m) for kind in ("synthetic", "mixed") if kind in kinds for m in _multiples(spec)))


def _multiples(spec: JudgeSpec) -> list[int]:
    return sorted({1} if spec.multiples is None else set(spec.multiples))


def filled(spec: RunSpec, train: int) -> RunSpec:
    """The spec with `judge.multiples` written out for `train` real images: 1, and the largest whole one of
    `generate.count`."""
    if spec.judge.multiples is not None or train < 1:
        return spec
    multiples = tuple(sorted({1, max(1, spec.generate.count // train)}))
    return spec.model_copy(update={"judge": spec.judge.model_copy(update={"multiples": multiples})})


def check(spec: RunSpec, train: int, test: int) -> None:
    """Whether the arms can be made from `train` real and `generate.count` synthetic images; raises ConfigError."""
    if test == 0:
        raise ConfigError(
            "judge", "needs a test split, and no real image is in it", "set split.test or source.test_path"
        )
    largest = max((arm.multiple for arm in arms(filled(spec, train).judge)), default=0)
    if largest * train > spec.generate.count:
        raise ConfigError(
            "judge.multiples",
            f"{largest} x {train:,} training images are {largest * train:,} samples, "
            f"generate.count is {spec.generate.count:,}",
            f"raise generate.count to {largest * train}, or ask for smaller multiples",
        )


def outcome_name(arm: str, seed: int) -> str:
    """Where the result of one judge lies in an output."""
    return f"{FOLDER}/{arm}-{seed}.json"


def outcomes(
    spec: RunSpec,
    catalog: Catalog,
    store: Store,
    progress: Reporter,
    controls: Sequence[Arm] = (),
    prepare: Callable[[Data, set[str]], Data] = lambda data, kinds: data,
) -> list[Outcome]:
    """Train every (arm, seed) that is not on storage yet; returns all of them, arm by arm, `controls` last.

    `prepare(data, kinds)` adds what control arms of these kinds train on. Each result is published on its own as soon
    as it is there, so an interrupted run goes on with the next judge. The test split is read once by each trained
    judge, after its last step; nothing is chosen by it. Call inside a Ray session.
    """
    n = catalog.split("train").num_rows
    check(spec, n, catalog.split("test").num_rows)
    spec = filled(spec, n)
    wanted = (*arms(spec.judge), *controls)
    jobs = [(arm, seed) for arm in wanted for seed in range(spec.judge.seeds)]
    pending = [(arm, seed) for arm, seed in jobs if not store.exists(outcome_name(arm.key, seed))]
    if pending:
        data = images(spec, catalog, store, progress, max(arm.multiple for arm in wanted))
        data = prepare(data, {arm.kind for arm, _ in pending})
        names = [outcome_name(arm.key, seed) for arm, seed in pending]
        readings.note(store, "judge", "judge", [arm.key for arm, _ in pending], names, len(data.test.labels))
        _train_all(spec, data, store, progress, pending)
    return [_read(store, arm.key, seed) for arm, seed in jobs]


def _read(store: Store, arm: str, seed: int) -> Outcome:
    return documents.read(store, outcome_name(arm, seed), Outcome)


def _train_all(spec: RunSpec, data: Data, store: Store, progress: Reporter, jobs: list[tuple[Arm, int]]) -> None:
    """One Ray Train run: the images go to the object store once, the workers share the jobs."""
    import ray

    board = Board.create()
    config: Config = {
        "jobs": jobs,
        "data": ray.put(data),
        "spec": spec.judge,
        "store": store,
        "board": board,
        "generator": spec.seed,
    }
    with follow(board, progress):
        run(loop, config, name="judge", resources=workers(spec.resources, len(jobs)))


def images(spec: RunSpec, catalog: Catalog, store: Store, progress: Reporter, multiple: int) -> Data:
    """The real images, and the first `multiple` times n of the synthetic set."""
    train, test = catalog.split("train"), catalog.split("test")
    n = train.num_rows
    wanted = multiple * n
    with progress.task("judge: images", n + test.num_rows + wanted) as task:
        rows = catalog.split("validation")
        validation = real_images(spec, rows, task, same_codec=False) if rows.num_rows else None
        return Data(
            train=real_images(spec, train, task, same_codec=True),
            test=real_images(spec, test, task, same_codec=False),
            synthetic=synthetic_images(spec, store, wanted, task) if wanted else None,
            n=n,
            classes=len(catalog.class_names),
            validation=validation,
        )


def workers(resources: ResourcesSpec, jobs: int) -> ResourcesSpec:
    """As many workers as jobs can use; on CPUs every core takes part, as the jobs share nothing."""
    from engine.cluster.session import cores_of_cluster, device

    most = resources.train_workers
    if device(resources) == "cpu":
        most = max(most, cores_of_cluster(resources.labels))
    return resources.model_copy(update={"train_workers": max(1, min(most, jobs)), "train_workers_min": None})


class Config(TypedDict):
    """What the workers are sent; `data` is a reference to `Data`, `generator` the generator's seed."""

    jobs: list[tuple[Arm, int]]
    data: Any
    spec: JudgeSpec
    store: Store
    board: Board
    generator: int


def loop(config: Config) -> None:
    """The worker: its share of the (arm, seed) jobs, each trained, tested once and published."""
    import ray
    import torch

    from engine.training import judge_tuning

    here = place()
    torch.set_num_threads(1)  # the same sums in the same order on every machine; also faster at this size
    data: Data = ray.get(config["data"])
    jobs = config["jobs"][here.rank :: here.world_size]
    store, spec, board = config["store"], config["spec"], config["board"]
    name = "judge" if here.world_size == 1 else f"judge: worker {here.rank + 1}"
    for k, (arm, seed) in enumerate(jobs):
        if store.exists(outcome_name(arm.key, seed)):
            continue

        def tick(step: int, loss: float, k: int = k, arm: Arm = arm, seed: int = seed) -> None:
            done, total = k * spec.steps + step, len(jobs) * spec.steps
            board.update(name, done, total, "steps", arm=arm.key, seed=seed, loss=loss)

        tuned = f"{FOLDER}/tuned/{arm.key}.json"
        own = judge_tuning.tuned_once(store, tuned, arm, config["generator"], spec, data, here.device)
        outcome = judge_one(arm, seed, own, data, here.device, tick)
        store.create(outcome_name(arm.key, seed), json.dumps(asdict(outcome), sort_keys=True, allow_nan=False).encode())


def judge_one(
    arm: Arm,
    seed: int,
    spec: JudgeSpec,
    data: Data,
    device: torch.device | str = "cpu",
    tick: Callable[[int, float], None] = lambda step, loss: None,
) -> Outcome:
    """Train one judge on its arm, calling `tick(step, loss)` on the way, and test it once.

    Raises ConfigError where the training diverges.
    """
    from engine.training import judge_model

    started = time.monotonic()
    model, loss, drawn = fit(arm, seed, spec, data, device, tick)
    seconds = time.monotonic() - started
    test = data.test
    logits = judge_model.logits(model, test.part().pixels, device)
    predicted = logits.argmax(1)
    right = predicted == test.labels
    return Outcome(
        arm=arm.key,
        seed=seed,
        real_images=_real(arm, data),
        synthetic_images=len(drawn.labels) if drawn is not None else 0,
        accuracy=float(right.mean()),
        correct=np.bincount(test.labels[right], minlength=data.classes).tolist(),
        confusions=_confusions(test.labels[~right], predicted[~right], data.classes),
        loss=loss,
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=round(seconds, 3),
        device=str(device),
        **measured(logits, test.labels),
        validation=_validated(model, spec, data, device),
    )


def _validated(model: Judge, spec: JudgeSpec, data: Data, device: torch.device | str) -> float | None:
    """The metric on validation images; None without them, or where they are of one class and it needs two."""
    from engine.training import judge_model

    held = data.validation
    if held is None:
        return None
    logits = judge_model.logits(model, held.part().pixels, device)
    if spec.metric == "accuracy":
        return float((logits.argmax(1) == held.labels).mean())
    return measured(logits, held.labels)[spec.metric]


def _real(arm: Arm, data: Data) -> int:
    """How many different images an arm has that are real ones, or were made of one each."""
    own = data.controls.get(arm.kind, data.train)
    return 0 if arm.kind == "synthetic" else len(own.labels)


def fit(
    arm: Arm,
    seed: int,
    spec: JudgeSpec,
    data: Data,
    device: torch.device | str = "cpu",
    tick: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[Judge, float, Arrays | None]:
    """Train one judge on its arm; returns it, its loss at the end and the synthetic images that it could draw.

    Raises ConfigError where the training diverges.
    """
    from engine.training import judge_model

    parts, drawn = _parts(arm, data)
    strong = data.augmentation if arm.kind == "augmented" else None
    model, loss = judge_model.train(parts, spec, data.classes, seed, device, tick, strong=strong)
    if not math.isfinite(loss):
        raise ConfigError("judge.lr", f"{spec.lr:g} is too high: {arm.key} with seed {seed} diverged", "lower it")
    return model, loss, drawn


def _parts(arm: Arm, data: Data) -> tuple[list[Part], Arrays | None]:
    """What an arm trains on, and the synthetic images among it."""
    if arm.kind in data.controls:
        return [data.controls[arm.kind].part()], None
    if arm.kind == "duplicated":
        own = data.train.part()
        pixels, labels = own.pixels.repeat(arm.multiple, 1, 1, 1), own.labels.repeat(arm.multiple)
        return [replace(own, pixels=pixels, labels=labels)], None
    synthetic = data.synthetic if arm.kind in ("synthetic", "mixed") and arm.multiple else None
    drawn = synthetic.below(arm.multiple * data.n) if synthetic is not None else None
    parts = [data.train.part()] if arm.kind != "synthetic" else []
    return parts + ([drawn.part()] if drawn is not None else []), drawn


def _confusions(true: np.ndarray, predicted: np.ndarray, classes: int) -> list[tuple[int, int, int]]:
    """The commonest mistakes as (true, predicted, count), largest count first."""
    pairs, counts = np.unique(true.astype(np.int64) * classes + predicted, return_counts=True)
    order = np.lexsort((pairs, -counts))[:MAX_CONFUSIONS]
    return [(int(pairs[i] // classes), int(pairs[i] % classes), int(counts[i])) for i in order]
