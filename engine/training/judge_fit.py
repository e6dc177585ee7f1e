"""One judge: its training set, its training, and what it gets right; `judge_training` runs them all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import ConfigError, DataError
from engine.spec.recipe import JudgeSpec
from engine.training.judge_data import Arrays
from engine.training.measures import measured
from engine.training.trainingresults import ArmKind

if TYPE_CHECKING:
    import torch

    from engine.training.judge_model import Judge, Part

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
