"""The shapes of what studies read back: trials that are finished, and results that a later call shows again."""

from __future__ import annotations

from typing import NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from engine.statistics.published import Compared, Interval


class Copied(TypedDict):
    """A set's copy share and membership AUC, in pixels."""

    share: float
    auc: float


class ArmTrial(TypedDict):
    """One arm and generator seed, by training set: accuracies, a judge each, and which of the `images` were right
    (`reading.packed`)."""

    scores: dict[str, list[float]]
    right: dict[str, list[str]]
    images: int


class AblationTrial(ArmTrial):
    """That of an ablation, with the recipe that made it."""

    settings: dict[str, object]
    copies: NotRequired[Copied]


class RealJudges(TypedDict):
    """Judges of the real images alone, of one generator seed."""

    accuracies: list[float]


class Choice(TypedDict):
    """The arm that was chosen on validation images, written down before the test split is read."""

    arm: str


class ArmReading(TypedDict):
    """The one reading of the test split for the arm that was chosen and the reference, with fresh generators and
    judges."""

    choice: str
    images: int
    seeds: list[int]
    training_sets: dict[str, dict[str, object]]


class Round(TypedDict):
    """A round of a deliberate arm: images drawn, training images drawn after, and these by class."""

    images: int
    anchors: int
    classes: list[int]


class DeliberateTrial(ArmTrial):
    """That of deliberate generation, with its settings and what each round chose."""

    settings: dict[str, object]
    rounds: list[Round]


class EquivalenceCell(TypedDict):
    """Accuracies by size of the real set, or by multiple of the base."""

    settings: dict[str, object]
    accuracies: dict[str, list[float]]


class SearchOutcome(TypedDict):
    """One classifier of a search; which images were right as `reading.packed` writes it."""

    accuracy: float
    right: str


class JudgeReading(SearchOutcome):
    """`engine.study.judge_reading.Reading` as JSON: the outcome, and how many images it was trained on."""

    real_images: int
    synthetic_images: int


class SearchChoice(TypedDict):
    """The setting that was chosen on validation images, written down before the test split is read."""

    ratio: float
    values: dict[str, object]


class SearchMean(TypedDict):
    """A setting over its seeds."""

    units: list[float]
    mean: float
    sd: float | None
    interval: Interval
    population: NotRequired[Interval]
    judges: NotRequired[float | None]


class SearchPoint(SearchMean):
    """A setting on the validation images."""

    key: str
    label: str
    ratio: float
    values: dict[str, object]
    synthetic_images: int
    whole: bool
    accuracies: list[list[float]]
    gain: Compared | None


class Setting(TypedDict):
    """A setting by name."""

    key: str
    label: str
    ratio: float
    values: dict[str, object]


class TestReading(TypedDict):
    """The one reading of the test split."""

    choice: Setting
    images: int
    chosen: SearchMean
    zero: SearchMean
    gain: Compared | None
    accuracies: dict[str, list[list[float]]]


class PublishedReading(TestReading):
    """The reading as a search's result holds it."""

    of_this_choice: bool


class SearchResult(TypedDict):
    """`results/search.json`."""

    name: str
    training_images: int
    validation_images: int
    generator_seeds: int
    judge_seeds: int
    method: str
    points: list[SearchPoint]
    chosen: str
    beats_zero: bool
    one_standard_error: str
    test: PublishedReading | None
    covers: str
    asked: dict[str, object]
    recipe: dict[str, object]


class Estimate(TypedDict):
    """A value with its interval."""

    value: float
    interval: Interval


class RealAccuracy(TypedDict):
    """A point of the real curve."""

    images: int
    accuracy: float
    interval: Interval


class Amount(TypedDict):
    """So many synthetic images beside a base."""

    multiple: int
    synthetic: int
    accuracy: float
    interval: Interval
    worth: float
    worth_interval: Interval
    at_least: bool


class Base(TypedDict):
    """A base size of an equivalence study."""

    base: int
    verdict: str
    gain: Estimate
    amounts: list[Amount]
    A: Estimate | None
    marginal_price: Estimate | None
    doubling_price: Estimate | None


@with_config(ConfigDict(extra="allow"))
class EquivalenceResult(TypedDict):
    """The part of `results/equivalence.json` that a figure beside another study shows."""

    name: str
    generator: str
    synthetic: str
    sizes: list[int]
    real: list[RealAccuracy]
    bases: list[Base]
    c2: Estimate | None
