"""The training sets of `mimeo train`: which images each arm draws, in what shares; numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import ConfigError, DataError
from engine.images.splits import apportion
from engine.shards.mixing import Mixture, shares
from engine.spec.classifier import TrainSpec

Ints = NDArray[np.int64]
REAL, SYNTHETIC, RECONSTRUCTED = "real", "synthetic", "reconstructed"


@dataclass(frozen=True)
class Arm:
    """One training set.

    `multiple`: synthetic (or duplicate) images per real training image; `shots`: real images a class; `images`: real
    images in all, for a point of the real curve.
    """

    kind: str
    multiple: int = 0
    shots: int = 0
    images: int = 0

    @property
    def key(self) -> str:
        """The arm's name in results: `augmentation_2x`, `few_shot_5`, `few_shot_5_augmentation_2x`, `real_400`
        (curve)."""
        if self.kind == "curve":
            return f"real_{self.images}"
        if self.kind == "few_shot":
            return f"few_shot_{self.shots}"
        if self.kind == "few_shot_augmentation":
            return f"few_shot_{self.shots}_augmentation_{self.multiple}x"
        return f"{self.kind}_{self.multiple}x" if self.multiple else self.kind

    @property
    def needs_synthetic(self) -> bool:
        """Whether it draws synthetic images."""
        return self.multiple > 0 and self.kind != "duplicated"


@dataclass(frozen=True)
class Part:
    """Images of one source that an arm may draw: rows (N,) int64 of the set `of`."""

    of: str
    rows: Ints


def arms(spec: TrainSpec) -> tuple[Arm, ...]:
    """The arms of a recipe: each kind in its order, with every multiple, number of shots or size that it has."""
    found: list[Arm] = []
    multiples, shots = sorted(set(spec.multiples)), sorted(set(spec.shots))
    for kind in dict.fromkeys(spec.arms):
        if kind == "curve":
            found += [Arm(kind, images=size) for size in sorted(set(spec.curve))]
        elif kind == "few_shot":
            found += [Arm(kind, shots=k) for k in shots]
        elif kind == "few_shot_augmentation":
            found += [Arm(kind, shots=k, multiple=m) for k in shots for m in multiples]
        elif kind in ("real", "reconstructed"):
            found.append(Arm(kind))
        else:
            found += [Arm(kind, multiple=m) for m in multiples]
    return tuple(found)


def reference(spec: TrainSpec) -> str:
    """The arm that others are compared with: the one asked for, or the first where the default is not among them."""
    keys = [arm.key for arm in arms(spec)]
    if spec.reference in keys:
        return spec.reference
    if spec.reference != "real":
        what = f"{spec.reference} is none of the arms {', '.join(keys)}"
        raise ConfigError("train.reference", what, "name one of them")
    return keys[0]


def check(spec: TrainSpec, sizes: Ints, planned: int, validation: int, test: int, workers: int) -> None:
    """Whether the arms can be made: `sizes` (C,) real training images a class, `planned` synthetic images in all.

    Raises ConfigError for what the recipe asks too much of.
    """
    n, wanted = int(sizes.sum()), arms(spec)
    reference(spec)
    if test == 0:
        raise ConfigError(
            "train", "needs a test split, and no real image is in it", "set split.test or source.test_path"
        )
    if validation == 0 and (spec.select == "best" or spec.validate_every is not None):
        key = "train.select" if spec.select == "best" else "train.validate_every"
        raise ConfigError(
            key, "needs a validation split, and no real image is in it", "set split.validation, or select: last"
        )
    most = max((arm.multiple for arm in wanted if arm.needs_synthetic), default=0) * n
    if most > planned:
        what = f"{most // n} x {n:,} training images are {most:,} synthetic ones, there are {planned:,}"
        raise ConfigError(
            "train.multiples", what, "raise generate.count, add outputs to train.synthetic, or ask for less"
        )
    for arm in wanted:
        if arm.shots > int(sizes.min()):
            what = f"{arm.shots} images a class are asked for, a class has {int(sizes.min())}"
            raise ConfigError("train.shots", what, "ask for fewer, or give the train split a larger share")
        if arm.images > n or 0 < arm.images < len(sizes):
            what = f"{arm.images:,} images are asked for; there are {n:,} in {len(sizes)} classes"
            raise ConfigError("train.curve", what, "give sizes between the two")
    per_rank = 1 if spec.spread == "jobs" else workers
    unit = per_rank * (2 if spec.mixup or spec.cutmix else 1)
    if spec.batch % unit:
        what = f"{spec.batch} cannot be split over {per_rank} workers" + (
            " in pairs for mixup" if unit > per_rank else ""
        )
        raise ConfigError("train.batch", what, f"give a multiple of {unit}")


def parts(arm: Arm, seed: int, labels: Mapping[str, Ints], index: Ints, n: int) -> list[Part]:
    """What an arm draws from: real images first.

    `labels` hold the classes (N,) of the sets that were read; `index` (N,) rises over the synthetic set and counts
    planned samples, so that `multiple` x n is the same share of the plan whatever was quarantined. Subsets of real
    images are drawn by the classifier's seed, stratified, and nested: a smaller one is the beginning of a larger one.
    """
    found = []
    if arm.kind == "reconstructed":
        found.append(Part(RECONSTRUCTED, np.arange(len(labels[RECONSTRUCTED]), dtype=np.int64)))
    elif arm.kind != "replacement":
        found.append(Part(REAL, _real(arm, seed, labels[REAL])))
    if arm.kind == "duplicated":
        found.append(Part(REAL, np.resize(np.arange(n, dtype=np.int64), arm.multiple * n)))
    elif arm.needs_synthetic:
        stop = int(np.searchsorted(index, arm.multiple * n))
        if stop == 0:
            raise DataError(arm.key, "none of its synthetic images is left", "see quarantine.parquet")
        found.append(Part(SYNTHETIC, np.arange(stop, dtype=np.int64)))
    return found


def mixture(spec: TrainSpec, chosen: list[Part], labels: Mapping[str, Ints], seed: int) -> Mixture:
    """The batches of an arm; `train.share` holds where there are two parts."""
    own = [labels[part.of][part.rows] for part in chosen]
    fixed = None if isinstance(spec.share, str) else spec.share
    share = shares([len(part.rows) for part in chosen], fixed)
    return Mixture(own, spec.batch, seed, share=share, class_balanced=spec.class_balanced)


def _real(arm: Arm, seed: int, labels: Ints) -> Ints:
    if not arm.shots and not arm.images:
        return np.arange(len(labels), dtype=np.int64)
    sizes = np.bincount(labels)
    if arm.shots:
        wanted = np.full(len(sizes), arm.shots, np.int64)
    else:
        wanted = apportion(arm.images, sizes, np.ones_like(sizes), sizes)
    text = hashlib.sha256(f"subset\x1f{seed}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(text[:16], "little")).permutation(len(labels))
    chosen = [order[labels[order] == c][: wanted[c]] for c in range(len(sizes))]
    return np.sort(np.concatenate(chosen))
