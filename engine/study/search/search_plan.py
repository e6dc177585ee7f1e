"""The trials of a ratio search, and what can be said of them before Ray starts, without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from engine import output
from engine.errors import ConfigError
from engine.spec import RunSpec, digest, plain
from engine.spec.studies import SearchSpec
from engine.storage import documents
from engine.storage.store import Store
from engine.study.ablation_arms import changed
from engine.study.studyresults import SearchResult

RESULT = output.SEARCH
TRIALS = output.SEARCH_TRIALS
TESTS = output.SEARCH_TESTS

Values = tuple[tuple[str, Any], ...]
Seeds = tuple[tuple[int, int], ...]  # (generator seed, judge seed), both from 0


@dataclass(frozen=True)
class Point:
    """One setting to try: synthetic images a real one, and the values of the space's keys (none at ratio 0)."""

    ratio: float
    values: Values = ()

    @property
    def key(self) -> str:
        """Its name in results, such as `5x` or `0.5x-1f0c2d3e`."""
        return f"{self.ratio:.15g}x" + (f"-{name_of(self.values)}" if self.values else "")

    @property
    def label(self) -> str:
        """The same for a person, such as `5x, guidance_scale 2.0`."""
        return ", ".join([f"{self.ratio:.15g}x", *described(self.values)])

    def count(self, n: int) -> int:
        """How many synthetic samples it takes beside `n` real images: floor(ratio n), with the ratio as it is
        written."""
        return math.floor(Fraction(str(self.ratio)) * n)

    def changes(self) -> dict[str, object]:
        """What it changes in the recipe besides the amount."""
        return dict(self.values)


@dataclass(frozen=True)
class Work:
    """What one trial of Ray Tune does: the classifiers of a point, in stretches after which it may be stopped."""

    point: Point
    stretches: tuple[Seeds, ...]

    @property
    def seeds(self) -> Seeds:
        """All of its classifiers, in order."""
        return tuple(itertools.chain.from_iterable(self.stretches))

    @property
    def key(self) -> str:
        """Its name in progress and errors: of one generator seed among several, or of all."""
        generators = {generator for generator, _ in self.seeds}
        return f"{self.point.key} seed {min(generators)}" if len(generators) == 1 else self.point.key


@dataclass(frozen=True)
class Space:
    """What is searched: named dimensions, each with its values in order; the first are the ratios above 0."""

    dimensions: tuple[tuple[str, tuple[Any, ...]], ...]

    def point(self, indices: Mapping[str, int]) -> Point:
        """The setting that takes the value with this index in each dimension."""
        ratio, *others = [(name, values[indices[name]]) for name, values in self.dimensions]
        return Point(ratio[1], tuple(others))

    def indices(self, point: Point) -> dict[str, int]:
        """The inverse of `point`."""
        chosen = {"ratio": point.ratio, **dict(point.values)}
        return {name: values.index(chosen[name]) for name, values in self.dimensions}

    def points(self) -> list[Point]:
        """The whole grid, ratio by ratio."""
        names = [name for name, _ in self.dimensions]
        ranges = [range(len(values)) for _, values in self.dimensions]
        return [self.point(dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*ranges)]


def section(spec: RunSpec) -> SearchSpec:
    """The recipe's search section, or the default one."""
    return spec.search or SearchSpec()


def space(spec: RunSpec) -> Space:
    """The ratios above 0 and the space's values as the recipe understands them; ConfigError for those it does not."""
    asked = section(spec)
    ratios = tuple(sorted({ratio for ratio in asked.ratios if ratio}))
    others = [(key, _understood(spec, key, values)) for key, values in sorted(asked.space.items())]
    return Space((("ratio", ratios), *others))


def tried(spec: RunSpec) -> list[Point]:
    """The settings above ratio 0 that `grid` and `asha` try, in their order: all, or the first of a random order."""
    points = space(spec).points()
    if section(spec).method != "asha":
        return points
    rng = np.random.default_rng([0x61736861, spec.seed])
    shuffled = [points[k] for k in rng.permutation(len(points))]
    return shuffled[: section(spec).trials]


def seeds(spec: RunSpec) -> Seeds:
    """Every (generator seed, judge seed), generator by generator."""
    asked = section(spec)
    return tuple(itertools.product(range(asked.generator_seeds), range(asked.judge_seeds)))


def by_generator(spec: RunSpec) -> list[Seeds]:
    """The same, a list entry a generator seed."""
    return [tuple(group) for _, group in itertools.groupby(seeds(spec), key=lambda seed: seed[0])]


def outcome(folder: str, point: Point, seed: tuple[int, int]) -> str:
    """Where the accuracy of one classifier lies."""
    return f"{folder}/{point.key}/{seed[0]}-{seed[1]}.json"


def stopped(point: Point) -> str:
    """Where it is written that a setting was stopped early."""
    return f"{TRIALS}/{point.key}/stopped.json"


def set_spec(spec: RunSpec, point: Point, generator: int, count: int) -> RunSpec:
    """The recipe of a synthetic set of `count` images of the generator seed `generator`, with the point's values."""
    return changed(spec, {**point.changes(), "generate.count": count}, generator)


def largest(spec: RunSpec, n: int) -> int:
    """Samples that a set needs for the largest ratio."""
    return Point(max(section(spec).ratios)).count(n)


def finished(spec: RunSpec, store: Store) -> SearchResult | None:
    """The result of this very search where it is there, else None."""
    result = documents.find(store, RESULT, SearchResult)
    return result if result is not None and result["asked"] == section(spec).model_dump(mode="json") else None


def check(spec: RunSpec) -> None:
    """Refuse, before Ray starts, splits, and settings that cannot work (ConfigError)."""
    from engine.images.listing import planned_labels
    from engine.study.judge_reading import need_validation
    from engine.training.matching.matching_precheck import precheck

    need_validation(spec.split.validation, "a search")
    if "model.lora_scale" in section(spec).space and spec.match is None and spec.model.lora is None:
        raise ConfigError(
            "search.space.model.lora_scale", "there is no LoRA", "name one in model.lora, or leave it out"
        )
    values = {name_of(point.values): point for point in space(spec).points()}
    for point in values.values():
        try:
            precheck(changed(spec, point.changes(), spec.seed))
        except ConfigError as error:
            raise ConfigError(f"search.space: {', '.join(described(point.values))}", error.what, error.fix) from None
    check_ratios(spec, len(planned_labels(spec)[0]))


def drawn(spec: RunSpec) -> dict[str, RunSpec]:
    """The recipes of all settings, by their names."""
    found = {point.values: point for point in space(spec).points()}
    return {
        f"search.space: {', '.join(described(values))}" if values else "": changed(spec, point.changes(), spec.seed)
        for values, point in found.items()
    }


def check_ratios(spec: RunSpec, n: int) -> None:
    """Whether every ratio above 0 gives an image beside `n` real ones; raises ConfigError."""
    for ratio in section(spec).ratios:
        if ratio and not Point(ratio).count(n):
            what = f"{ratio:g} of {n:,} training images is less than one image"
            raise ConfigError("search.ratios", what, "ask for larger ratios")


def name_of(values: Values) -> str:
    """Eight letters that stand for a choice of values; `base` for the recipe's own."""
    return digest([list(pair) for pair in values])[:8] if values else "base"


def described(values: Sequence[tuple[str, Any]]) -> list[str]:
    """Each value with the last part of its key."""
    return [f"{key.rpartition('.')[2]} {value}" for key, value in values]


def _understood(spec: RunSpec, key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Values as the validated recipe holds them, each once, numbers in order; other keys than `key` are not judged
    here."""
    found: list[Any] = []
    for value in values:
        try:
            own = plain(changed(spec, {**_companions(key), key: value}, spec.seed))
        except ConfigError as error:
            raise ConfigError(f"search.space.{key}", error.what, error.fix) from None
        for part in key.split("."):
            own = own[part]
        if own not in found:
            found.append(own)
    return tuple(sorted(found)) if all(_is_number(value) for value in found) else tuple(found)


def _companions(key: str) -> dict[str, str]:
    """A strength is valid only beside a pairing, which the space may hold too."""
    return {"generate.pairing": "own"} if key == "generate.strength" else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
