"""Intervals and comparisons as JSON results hold them."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

Interval = list[float | None]


class Spread(TypedDict):
    """A result's repeats: mean, standard deviation (None for one), Student-t interval."""

    mean: float
    sd: float | None
    interval: Interval


class Compared(TypedDict):
    """An arm against the reference: `engine.statistics.comparison.Comparison` as JSON."""

    arm: str
    reference: str
    pairs: int
    difference: float
    interval: Interval
    population: NotRequired[Interval]
    p: float | None
    p_adjusted: float | None
    effect: NotRequired[float | None]
    needed: int | None
    finding: str


class StudyArm(TypedDict):
    """An arm of a study over its generator seeds; `population`: the interval over seeds and images."""

    values: list[float]
    mean: float
    sd: float | None
    interval: Interval
    population: Interval


class StudyGroup(TypedDict):
    """All arms of a study on one training set."""

    arms: dict[str, StudyArm]
    comparisons: list[Compared]
