"""The cells of an equivalence study, and what can be said of them before Ray starts, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import output
from engine.errors import ConfigError, DataError
from engine.spec import RunSpec
from engine.spec.studies import EquivalenceSpec
from engine.statistics import nested
from engine.study.ablation_arms import changed

CELLS = output.EQUIVALENCE_CELLS
STEPS_OF_CURVE = 2**0.5  # from one size of the default real curve to the next
BELOW = 0.4  # of the smallest base: where the default real curve begins

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """One trial: in a repeat, the real curve (base 0), or one base with all its amounts of synthetic images."""

    repeat: int
    base: int

    @property
    def key(self) -> str:
        """Its name in results, such as `100-0` or `real-0`."""
        return f"{self.base or 'real'}-{self.repeat}"

    @property
    def name(self) -> str:
        """Where its accuracies lie."""
        return f"{CELLS}/{self.key}.json"


def section(spec: RunSpec) -> EquivalenceSpec:
    """The recipe's equivalence section, or the default one."""
    return spec.equivalence or EquivalenceSpec()


def cells(spec: RunSpec) -> list[Cell]:
    """All cells, repeat by repeat, the largest bases first: they take longest."""
    asked = section(spec)
    bases = [*sorted(set(asked.bases), reverse=True), 0]
    return [Cell(repeat, base) for repeat in range(asked.generator_seeds) for base in bases]


def multiples(spec: RunSpec) -> tuple[int, ...]:
    """Synthetic images a base image, rising."""
    return tuple(sorted(set(section(spec).multiples)))


def sizes(spec: RunSpec, pool: int) -> tuple[int, ...]:
    """The sizes of the real curve: as asked, or the bases and a geometric row from below the smallest to all `pool`
    images."""
    asked = section(spec)
    if asked.real:
        return tuple(sorted({*asked.real, *asked.bases}))
    found, size = set(asked.bases) | {pool}, BELOW * min(asked.bases)
    while size < pool:
        if all(abs(size / other - 1) > 0.15 for other in found):
            found.add(round(size))
        size *= STEPS_OF_CURVE
    return tuple(sorted(found))


def order(labels: Ints, seed: int) -> Ints:
    """A random order of the pool (row numbers) in which every beginning has the classes in about the pool's
    proportions.

    In each class images are shuffled; the i-th of n comes at place (i + u) / n of the whole, u uniform for the class.
    """
    rng = np.random.default_rng([0x65717561, seed])
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + rng.uniform()) / len(rows)
    return np.argsort(place, kind="stable")


def cell_spec(spec: RunSpec, cell: Cell) -> RunSpec:
    """The recipe of a cell's generator and synthetic images: its own seed, trained on its base alone."""
    changes = {"split.train": cell.base, "generate.count": cell.base * max(multiples(spec))}
    return changed(spec, changes, spec.seed + cell.repeat)


def judge_seeds(spec: RunSpec, repeat: int) -> list[int]:
    """The seeds of a repeat's classifiers: the same in all its cells, others in other repeats."""
    return nested.judge_seeds(spec.seed + repeat, section(spec).judge_seeds)


def check(spec: RunSpec) -> None:
    """Refuse, before Ray starts, sizes that cannot work (ConfigError, DataError)."""
    from engine.images.listing import planned_labels
    from engine.training.matching.matching_precheck import precheck

    if spec.judge.tune:
        what = "is not for an equivalence study, whose classifiers all take the same steps"
        raise ConfigError("judge.tune", what, "leave it out")
    labels, _ = planned_labels(spec)
    check_sizes(spec, labels)
    for base in section(spec).bases:
        precheck(cell_spec(spec, Cell(0, base)))


def check_sizes(spec: RunSpec, labels: Sequence[int] | NDArray[np.integer]) -> None:
    """Whether a pool of training images with these labels has what is asked; raises ConfigError or DataError."""
    asked, pool = section(spec), len(labels)
    planted = asked.synthetic != "generator"
    for base in asked.bases:
        wanted = base * (1 + max(asked.multiples)) if planted else base
        if wanted > pool:
            what = (
                f"base {base} "
                f"{f'with {max(asked.multiples)}x further real images ' if planted else ''}needs "
                f"{wanted:,} training images, there are {pool:,}"
            )
            raise ConfigError("equivalence.bases", what, "ask for smaller bases or multiples, or raise split.train")
    for size in asked.real:
        if size > pool:
            raise ConfigError("equivalence.real", f"{size} of {pool:,} training images", "ask for smaller sizes")
    smallest = min([*asked.bases, *asked.real])
    counts = np.bincount(np.asarray(labels))
    for repeat in range(asked.generator_seeds):
        rows = order(np.asarray(labels, np.int64), spec.seed + repeat)
        absent = np.flatnonzero(
            (counts > 0) & (np.bincount(np.asarray(labels)[rows[:smallest]], minlength=len(counts)) == 0)
        )
        if len(absent):
            what = f"the first {smallest} training images of repeat {repeat} have none of class {absent[0]}"
            raise DataError("equivalence.bases", what, "ask for larger bases")
