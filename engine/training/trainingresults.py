"""The shapes of what trainings leave in an output and what is read back: loss curves, markers, classifiers."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, final

from annotated_types import Len
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

ArmKind = Literal["real", "synthetic", "mixed", "duplicated", "photocopy", "reconstructed", "augmented"]
BUCKETS = 5  # noise levels of a fine-tune's errors, clean to noisy


class Codec(TypedDict):
    """How a judge's training images were encoded; `quality` is null without loss."""

    format: str
    quality: int | None
    lossy: bool


class Scores(TypedDict):
    """What a judge's scores say beside accuracy; null: the images are of one class."""

    balanced_accuracy: float
    macro_f1: float
    auroc: float | None


class Curve(TypedDict):
    """A training: its steps and seconds, and losses with the steps that end their stretches."""

    steps: int
    seconds: float
    step: list[int]
    loss: list[float]


@final
class HeldOutCurve(TypedDict):
    """A denoiser's error on training and held-out images along its training, and at the chosen step for each length of
    the average."""

    step: list[int]
    train: list[float]
    held: list[float]
    lengths: list[Annotated[list[float], Len(2, 2)]]
    chosen_step: int
    chosen_length: float


@final
class HeldOutError(TypedDict):
    """A finished VAE's error on both."""

    train: float
    held: float


class PretrainResults(TypedDict):
    """`results/pretrain.json`: a curve for each model; what held-out images said of the VAE and the denoiser, if there
    were any."""

    images: int
    stages: dict[str, Curve]
    held_out: NotRequired[dict[str, HeldOutCurve | HeldOutError]]


class MatchResults(Curve):
    """`results/match.json`: the curve; by phase both terms, and the squared error at each noise level."""

    images: int
    phase_step: list[int]
    denoising: list[float]
    mmd: list[float]
    levels: list[Annotated[list[float | None], Len(BUCKETS, BUCKETS)]]


@with_config(ConfigDict(extra="allow"))
class Marker(TypedDict):
    """`mimeo.json` of a finished model: what decided its weights, and facts about it."""

    made_from: dict[str, object]


class ClassifierFacts(TypedDict):
    """`classifier.json` beside a classifier's weights; `selected` is null until its training has ended."""

    arm: str
    seed: int
    train: dict[str, object]
    class_names: list[str]
    size: int
    made_from: dict[str, object]
    selected: str | None


class Measured(TypedDict):
    """What a classifier's probabilities on the test split say (`metrics.measure`)."""

    images: int
    top1: float
    top5: float | None
    nll: float
    ece: float
    calibration: list[list[float]]
    correct: list[int]
    confusions: list[list[int]]
    confusion: list[list[int]] | None


@with_config(ConfigDict(extra="allow"))
class ClassifierResult(TypedDict):
    """`results/train/NAME.json`."""

    arm: str
    seed: int
    classifier: str
    images: dict[str, int]
    drawn: list[int]
    steps: int
    parameters: int
    curve: Curve
    test: Measured
