"""The shapes of the results that are read back: judged arms, the summary of a run, and an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from engine.statistics.published import Compared, Interval
from engine.training.trainingresults import ArmKind, Codec

Verdict = Literal["copies", "not told from real images"]
ControlFinding = Literal["better", "worse", "not told apart"]
HeldOutSplit = Literal["validation", "test"]
PairName = Literal["synthetic", "real", "held_out"]
AucFound = dict[Literal["value", "error"], float]  # an area under the ROC curve


class CopyShare(TypedDict):
    """Images nearer to a training image than `threshold`; `null`: the share of other real images; `p` of as many by
    chance."""

    images: int
    share: float
    interval: Interval
    null: float
    null_interval: Interval
    threshold: float
    p: float


class SpaceCopies(CopyShare):
    """A synthetic set in one space: copy share, median distance, and the membership attack."""

    median: float
    auc: float
    auc_interval: Interval


class SetCopies(TypedDict):
    """The first `multiple` times n synthetic images."""

    pixels: SpaceCopies
    features: SpaceCopies
    verdict: Verdict


class Pair(TypedDict):
    """A synthetic image (its index in the plan) and its nearest training image (its row in the training split)."""

    which: Literal["nearest", "middle"]
    synthetic: int
    training: int
    distance: float


class HeldOut(TypedDict):
    """The real images that say how near images lie that nobody copied."""

    split: HeldOutSplit
    images: int


class Photocopy(TypedDict):
    """Noise (sd, of 255) of the photocopies; their median distance beside that of the synthetic images, and their copy
    share."""

    noise: float
    target: float
    median: float
    share: CopyShare


class Augmentation(TypedDict):
    """The strong augmentation, and by what it was chosen."""

    kind: str
    chosen_on: Literal["validation"] | None
    scores: dict[str, float]


class AuditedSets(TypedDict):
    """What an audit finds but for the pairs; `sets` by multiple of the training images."""

    held_out: HeldOut
    training: int
    features: str
    held_out_median: dict[Literal["pixels", "features"], float]
    sets: dict[str, SetCopies]
    photocopy: Photocopy | None
    augmentation: Augmentation | None
    covers: str


class AuditedCopies(AuditedSets):
    """All that an audit finds."""

    pairs: list[Pair]


class Copies(AuditedCopies):
    """`results/copies.json`."""

    seconds: float


class Against(TypedDict):
    """The best control of an arm: its mean, and control minus arm, paired by seed; `finding` is of the control."""

    best: str
    mean: float
    difference: float
    interval: Interval
    finding: ControlFinding


class Measure(TypedDict):
    """One metric of an arm over its judge seeds."""

    values: list[float]
    mean: float
    sd: float | None
    interval: Interval


class JudgedArm(TypedDict):
    """One training set of `results/judge.json`, a value a judge seed; the first three numbers count images.

    `mean` to `ratio_interval`, but for `test_error`, are of the recipe's metric, whose `values` stand beside
    `accuracies`. `validation`: the same metric on validation images, which advice goes by; None where there are none.
    """

    kind: ArmKind
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
    values: NotRequired[list[float]]
    validation: NotRequired[list[float] | None]
    measures: NotRequired[dict[str, Measure]]
    copies: NotRequired[SetCopies]
    control: NotRequired[Against]


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
    codec: Codec
    resolution: int
    parameters: int
    recipe: dict[str, object]
    seconds: float
    metric: NotRequired[str]
    copies: NotRequired[Copies | None]
    left_out: NotRequired[dict[str, str]]


class ArmSize(TypedDict):
    """What an arm trains on."""

    kind: ArmKind
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
    metric: NotRequired[str]
    left_out: NotRequired[dict[str, str]]


class MembershipAuc(TypedDict):
    """How well the distance to the nearest synthetic image tells training images from others."""

    auc: float
    auc_interval: Interval


class ArmSummary(TypedDict):
    """`ARM_accuracy` and the like of `results/summary.json`, without the arm's name."""

    accuracy: float
    accuracy_interval: Interval
    test_error: float
    ratio: NotRequired[float | None]
    ratio_interval: NotRequired[Interval]
    balanced_accuracy: NotRequired[float]
    balanced_accuracy_interval: NotRequired[Interval]
    macro_f1: NotRequired[float]
    macro_f1_interval: NotRequired[Interval]
    auroc: NotRequired[float]
    auroc_interval: NotRequired[Interval]
    copy_share: NotRequired[float]
    copy_share_interval: NotRequired[Interval]
    copy_share_null: NotRequired[float]
    copy_share_features: NotRequired[float]
    membership_auc: NotRequired[float]
    copies: NotRequired[Verdict]
    best_control: NotRequired[str]
    best_control_mean: NotRequired[float]
    control_difference: NotRequired[float]
    control_difference_interval: NotRequired[Interval]
    control_finding: NotRequired[ControlFinding]


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
    pairs: dict[PairName, GapPair]


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

    features: AucFound
    pixels: AucFound
    classes: list[Overlap]


class GapFound(TypedDict):
    """A piece about one classifier's gap."""

    images: int
    pairs: dict[PairName, PairFound]


PIECES: Mapping[str, Any] = {"set": SetCounts, "corruption": dict[str, Counts], "gap": GapFound}
