"""What a ratio search has found: the curve with intervals, gains over ratio 0, the chosen ratio and its plainer alternative."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.study.comparison import compare
from engine.study.search.plan import Point
from engine.study.statistics import spread

ZERO = Point(0.0)
Accuracies = Mapping[tuple[int, int], float]  # by (generator seed, judge seed)


def curve(values: Mapping[Point, Accuracies], whole: int, n: int) -> list[dict[str, Any]]:
    """Every setting with its accuracies, mean, interval and gain over ratio 0, in order of the ratio.

    A setting with fewer than `whole` accuracies was stopped early: it is shown, and neither compared nor chosen. Gains are
    paired by seed; their p are Holm-adjusted over all that are compared. `n`: real training images.
    """
    order = sorted(values, key=lambda point: (point.ratio, point.label))
    known = {point.key: units(values[point]) for point in order if len(values[point]) == whole}
    gains = {found.arm: found.to_json() for found in compare(known, ZERO.key)}
    return [_entry(point, values[point], n, point.key in known, gains.get(point.key)) for point in order]


def units(values: Accuracies) -> list[float]:
    """What an interval is over: the mean of each generator seed, or the classifiers where there is one generator seed."""
    generators = sorted({generator for generator, _ in values})
    if len(generators) == 1:
        return [values[seed] for seed in sorted(values)]
    return [float(np.mean([values[seed] for seed in values if seed[0] == generator])) for generator in generators]


def choose(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole setting with the best mean, of equals the one with the smallest ratio."""
    return max((point for point in points if point["whole"]), key=lambda point: (point["mean"], -point["ratio"]))


def plainer(points: Sequence[dict[str, Any]], best: dict[str, Any]) -> dict[str, Any]:
    """The smallest ratio whose mean is within one standard error of the best's (Breiman et al. 1984, CART, section 3.4.3)."""
    number = len(best["units"])
    least = best["mean"] - (best["sd"] or 0.0) / math.sqrt(number)
    near = [point for point in points if point["whole"] and point["mean"] >= least]
    return min(near, key=lambda point: (point["ratio"], -point["mean"]))


def reading(chosen: Point, values: Mapping[Point, Accuracies], images: int) -> dict[str, Any]:
    """The test split read for a choice and for ratio 0: their means and the gain with its interval, unadjusted: it is one."""
    own, zero = units(values[chosen]), units(values[ZERO])
    gain = compare({chosen.key: own, ZERO.key: zero}, ZERO.key) if chosen != ZERO else []
    return {
        "choice": _named(chosen),
        "images": images,
        "chosen": _units(own),
        "zero": _units(zero),
        "gain": gain[0].to_json() if gain else None,
        "accuracies": {point.key: _table(found) for point, found in values.items()},
    }


def covers(generators: int, judges: int, images: int) -> str:
    """What the intervals of a search say and what they leave out."""
    over = (
        f"Each value is a generator seed's, the mean of {judges} classifiers; intervals are 95 % Student-t intervals over the "
        f"{generators} generator seeds, so they cover the generator's training, its images and the classifiers' training"
        if generators > 1
        else f"Each value is a classifier's; intervals are 95 % Student-t intervals over the {judges} classifier seeds of one "
        "generator, so they cover the classifiers' training alone: another generator may give another curve"
    )
    return (
        f"{over}. Gains over ratio 0 are paired by seed; p is by paired t-tests, adjusted by Holm over all settings that ran to "
        f"the end. All accuracies are on the same {images:,} validation images: another draw of these, or of the training "
        "images, is not covered. The chosen setting is the best of several on these very images, so its validation gain is "
        "optimistic; the test split was not looked at before the choice was written down."
    )


def _entry(point: Point, values: Accuracies, n: int, whole: bool, gain: dict[str, Any] | None) -> dict[str, Any]:
    return {
        **_named(point),
        "synthetic_images": point.count(n),
        "whole": whole,
        "accuracies": _table(values),
        **_units(units(values)),
        "gain": gain,
    }


def _named(point: Point) -> dict[str, Any]:
    return {"key": point.key, "label": point.label, "ratio": point.ratio, "values": point.changes()}


def _units(found: list[float]) -> dict[str, Any]:
    return {"units": found, **spread(found)}


def _table(values: Accuracies) -> list[list[float]]:
    """A row a generator seed, an entry a classifier."""
    generators = sorted({generator for generator, _ in values})
    return [[values[seed] for seed in sorted(values) if seed[0] == generator] for generator in generators]
