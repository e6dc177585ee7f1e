"""What a ratio search has found: the curve with intervals, gains over ratio 0, the chosen ratio and its plainer
alternative."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from engine.statistics.comparison import compare, population
from engine.statistics.intervals import spread
from engine.statistics.nested import NO_VERDICT, judge_spread
from engine.statistics.population import Floats
from engine.statistics.published import Compared
from engine.study.search.search_plan import Point
from engine.study.studyresults import SearchMean, SearchPoint, Setting, TestReading

ZERO = Point(0.0)
Accuracies = Mapping[tuple[int, int], float]  # by (generator seed, judge seed)


def curve(
    values: Mapping[Point, Accuracies],
    whole: int,
    n: int,
    right: Mapping[Point, Floats] | None = None,
    effect: float | None = None,
) -> list[SearchPoint]:
    """Every setting with its accuracies, mean, intervals and gain over ratio 0, in order of the ratio.

    A setting with fewer than `whole` accuracies was stopped early: it is shown, and neither compared nor chosen. Gains
    are paired by generator seed and by image, where `right` (G, N) says which were right; their p are Holm-adjusted
    over all that are compared. `n`: real training images.
    """
    order = sorted(values, key=lambda point: (point.ratio, point.label))
    known = {point.key: units(values[point]) for point in order if len(values[point]) == whole}
    answers = {point.key: own for point, own in right.items()} if right else None
    gains = {found.arm: found.to_json() for found in compare(known, ZERO.key, right=answers, effect=effect)}
    answers = answers or {}
    return [
        _entry(point, values[point], n, point.key in known, gains.get(point.key), answers.get(point.key))
        for point in order
    ]


def units(values: Accuracies) -> list[float]:
    """What an interval is over: the mean of each generator seed."""
    return [float(np.mean(row)) for row in _table(values)]


def choose(points: Sequence[SearchPoint]) -> SearchPoint:
    """The whole setting with the best mean, of equals the one with the smallest ratio."""
    return max((point for point in points if point["whole"]), key=lambda point: (point["mean"], -point["ratio"]))


def plainer(points: Sequence[SearchPoint], best: SearchPoint) -> SearchPoint:
    """The smallest ratio whose mean is within one standard error of the best's (Breiman et al. 1984, CART, section
    3.4.3)."""
    number = len(best["units"])
    least = best["mean"] - (best["sd"] or 0.0) / math.sqrt(number)
    near = [point for point in points if point["whole"] and point["mean"] >= least]
    return min(near, key=lambda point: (point["ratio"], -point["mean"]))


def reading(
    chosen: Point,
    values: Mapping[Point, Accuracies],
    images: int,
    right: Mapping[Point, Floats] | None = None,
    effect: float | None = None,
) -> TestReading:
    """The test split read for a choice and for ratio 0: their means and the gain with its intervals, unadjusted: it is
    one."""
    known = {point.key: units(values[point]) for point in dict.fromkeys((ZERO, chosen))}
    answers = {point.key: own for point, own in right.items()} if right else None
    gain = compare(known, ZERO.key, right=answers, effect=effect)
    answers = answers or {}
    return {
        "choice": _named(chosen),
        "images": images,
        "chosen": _units(values[chosen], answers.get(chosen.key)),
        "zero": _units(values[ZERO], answers.get(ZERO.key)),
        "gain": gain[0].to_json() if gain else None,
        "accuracies": {point.key: _table(found) for point, found in values.items()},
    }


def covers(generators: int, judges: int, images: int) -> str:
    """What the intervals of a search say and what they leave out."""
    over = (
        f"Each value is a generator seed's, the mean of {judges} classifiers, whose seeds no "
        "other generator seed has; intervals "
        f"are 95 % Student-t intervals over the {generators} generator seeds, so they cover "
        "the generator's training, its images "
        "and the classifiers' training; those of the population hold the sampling of the "
        "images that were scored on too, and p "
        "are of these. Gains over ratio 0 are paired by seed and image; p are adjusted by "
        "Holm over all settings that ran to the "
        "end."
        if generators > 1
        else f"There is {NO_VERDICT}. The {judges} classifiers of that one generator differ among "
        "themselves by the deviation that "
        "is shown: another generator may give another curve."
    )
    return (
        f"{over} All accuracies are on the same {images:,} validation images; another draw of "
        "the training images is not "
        "covered. The chosen setting is the best of several on these very images, so its validation gain is "
        "optimistic; the test split was not looked at before the choice was written down, and "
        "was read with generators and "
        "classifiers of other seeds."
    )


def _entry(
    point: Point, values: Accuracies, n: int, whole: bool, gain: Compared | None, right: Floats | None
) -> SearchPoint:
    return {
        **_named(point),
        "synthetic_images": point.count(n),
        "whole": whole,
        "accuracies": _table(values),
        **_units(values, right),
        "gain": gain,
    }


def _named(point: Point) -> Setting:
    return {"key": point.key, "label": point.label, "ratio": point.ratio, "values": point.changes()}


def _units(values: Accuracies, right: Floats | None) -> SearchMean:
    """Mean and intervals over generator seeds, and `judges`, the standard deviation of classifiers within one."""
    found = units(values)
    told = spread(found)
    return {
        "units": found,
        "mean": told["mean"],
        "sd": told["sd"],
        "interval": told["interval"],
        "population": population(right),
        "judges": judge_spread(_table(values)),
    }


def _table(values: Accuracies) -> list[list[float]]:
    """A row a generator seed, an entry a classifier."""
    generators = sorted({generator for generator, _ in values})
    return [[values[seed] for seed in sorted(values) if seed[0] == generator] for generator in generators]
