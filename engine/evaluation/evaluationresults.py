"""The shapes of the results that are read back: judged arms, the summary of a run, and an evaluation."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from engine.study.studyresults import Compared, Interval


class JudgedArm(TypedDict):
    """One training set of `results/judge.json`; accuracies are shares, one a judge seed; the first three numbers count images."""

    kind: Literal["real", "synthetic", "mixed"]
    multiple: int
    real_images: int
    synthetic_images: int
    accuracies: list[float]
    mean: float
    sd: float | None
    interval: Interval
    test_error: float
    ratio: float | None
    ratio_interval: Interval
    per_class: list[float | None]
    confusions: list[tuple[int, int, float]]
    loss: float
    seconds: float


class Judged(TypedDict):
    """`results/judge.json`."""

    arms: dict[str, JudgedArm]
    class_names: list[str]
    n_train: int
    n_test: int
    test_per_class: list[int]
    seeds: list[int]
    level: float
    covers: str
    codec: dict[str, object]
    resolution: int
    parameters: int
    recipe: dict[str, object]
    seconds: float


class ArmSize(TypedDict):
    """What an arm trains on."""

    kind: Literal["real", "synthetic", "mixed"]
    multiple: int
    real_images: int
    synthetic_images: int


@with_config(ConfigDict(extra="allow"))
class Summary(TypedDict):
    """The part of `results/summary.json` that a terminal shows; beside it `ARM_accuracy` and the like for each arm."""

    name: str
    arms: dict[str, ArmSize]
    n_test: int
    judge_seeds: int
    level: float


class ArmSummary(TypedDict):
    """`ARM_accuracy` and the like of `results/summary.json`, without the arm's name."""

    accuracy: float
    accuracy_interval: Interval
    test_error: float
    ratio: NotRequired[float | None]
    ratio_interval: NotRequired[Interval]


class ArmValues(TypedDict):
    """One arm over its seeds."""

    values: list[float]
    mean: float
    sd: float | None
    interval: Interval
    test_error: NotRequired[float]


class ArmGroup(TypedDict):
    """All arms on one set of images."""

    arms: dict[str, ArmValues]
    comparisons: list[Compared]


class EvaluatedSet(ArmGroup):
    """One labelled set."""

    images: int
    per_class: list[int]
    classes: list[str]
    restricted: bool
    left_out: dict[str, int]
    bad: int
    trained_on: int


class Corruption(ArmGroup):
    """One kind of corruption: means over severities, and each severity's accuracy by arm."""

    severities: dict[str, dict[str, float]]


class Corruptions(TypedDict):
    """All corruptions."""

    note: str
    mean: ArmGroup
    kinds: dict[str, Corruption]


class Separation(TypedDict):
    """How well two sets can be told apart: area under the ROC curve."""

    values: list[float]
    auc: float
    error: float
    interval: Interval


class Overlap(TypedDict):
    """How alike two sets are in a classifier's features."""

    cka: float | None
    angle: float | None
    shift: float | None


class GapPair(TypedDict):
    """Two sets beside each other."""

    features: Separation
    pixels: Separation
    classes: list[Overlap]
    mean: Overlap


class Gap(TypedDict):
    """Real images beside synthetic ones."""

    covers: str
    images: int
    folds: int
    dimensions: int
    classifiers: int
    pairs: dict[Literal["synthetic", "real", "held_out"], GapPair]


class Evaluated(TypedDict):
    """`results/evaluate.json`."""

    settings: str
    classifiers: Literal["saved", "judges"]
    seeds: dict[str, list[int]]
    class_names: list[str]
    level: float
    covers: str
    sets: dict[str, EvaluatedSet]
    corruptions: Corruptions | None
    gap: Gap | None


class Counts(TypedDict):
    """A piece of an evaluation: images a class, and right answers a class of each classifier."""

    images: list[int]
    right: dict[str, list[int]]


class SetCounts(Counts):
    """A piece about one labelled set."""

    classes: list[int]
    restricted: bool
    left_out: dict[str, int]
    bad: int
    trained_on: int
    digest: NotRequired[str]


class PairFound(TypedDict):
    """Two sets beside each other, for one classifier."""

    features: dict[Literal["value", "error"], float]
    pixels: dict[Literal["value", "error"], float]
    classes: list[Overlap]


class GapFound(TypedDict):
    """A piece about one classifier's gap."""

    images: int
    pairs: dict[Literal["synthetic", "real", "held_out"], PairFound]


PIECES: dict[str, Any] = {"set": SetCounts, "corruption": dict[str, Counts], "gap": GapFound}
