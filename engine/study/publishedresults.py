"""The shapes of results that studies publish and pages show; what is read back is in `studyresults`."""

from __future__ import annotations

from typing import NotRequired, TypedDict, final

from engine.statistics.published import Compared, Interval, Spread, StudyGroup
from engine.study.studyresults import Base, Copied, Estimate, RealAccuracy


class SpreadValues(Spread):
    """Repeats with what is said of them."""

    values: list[float]


class FinalReading(TypedDict):
    """The one reading of the test split; `real`: judges of the real images alone, a value a generator seed."""

    choice: str
    images: int
    seeds: list[int]
    training_sets: dict[str, StudyGroup]
    of_this_choice: bool
    real: NotRequired[SpreadValues]


@final
class AblationResult(TypedDict):
    """`results/ablation.json`; the last two come after the summary of the validation images."""

    name: str
    reference: str
    seeds: list[int]
    judge_seeds: int
    arms: dict[str, dict[str, object]]
    real: SpreadValues
    training_sets: dict[str, StudyGroup]
    chosen: str
    copies: dict[str, Copied]
    effect: float
    covers: str
    recipe: dict[str, object]
    validation_images: NotRequired[int]
    test: NotRequired[FinalReading | None]


@final
class DeliberateResult(TypedDict):
    """`results/deliberate.json`; `classes`: the anchors of each round by class, of the first seed."""

    name: str
    reference: str
    seeds: list[int]
    judge_seeds: int
    images: int
    rounds: int
    share: float
    hard_guidance: float | None
    training_sets: dict[str, StudyGroup]
    chosen: str
    effect: float
    classes: dict[str, list[list[int]]]
    covers: str
    recipe: dict[str, object]
    validation_images: NotRequired[int]
    test: NotRequired[FinalReading | None]


class Rms(TypedDict):
    """How far a fit is from the cells: in gain and in accuracy."""

    gain: float
    accuracy: float


class PricedBase(Base):
    """A base, and how far its fit is off."""

    rms: Rms | None


class PaperForm(TypedDict):
    """The fit with A = c1^(n_base / k), and how far it is off at each base."""

    ln_c1_over_k: float
    c2: float
    rms: list[Rms]


class LackOfFit(TypedDict):
    """The test of the form that is fitted."""

    F: float
    p: float


class EquivalenceFindings(TypedDict):
    """What an equivalence study found."""

    sizes: list[int]
    real: list[RealAccuracy]
    bases: list[PricedBase]
    c2: Estimate | None
    paper_form: PaperForm | None
    lack_of_fit: LackOfFit | None
    repeats: int
    classifiers: int
    resamples: int
    level: float
    covers: str


class Advised(TypedDict):
    """What to do at one base: generate, label or stop."""

    base: int
    action: str
    text: str


class EquivalenceStudy(EquivalenceFindings):
    """`results/equivalence.json`; `cells`: accuracies by size or multiple, by `Cell.key`."""

    name: str
    generator: str
    synthetic: str
    classes: int
    test_images: int
    cells: dict[str, dict[str, list[float]]]
    recipe: dict[str, object]
    advice: list[Advised]


class MeanValues(TypedDict):
    """A value a generator seed, and their mean."""

    values: list[float]
    mean: float


class WorthSpace(TypedDict):
    """A synthetic set's copies in one space."""

    share: MeanValues
    auc: MeanValues
    median: MeanValues


class WorthCopies(TypedDict):
    """Copies in both spaces, and how many generator seeds' sets are called copies."""

    pixels: WorthSpace
    features: WorthSpace
    called_copies: int


class WorthArm(TypedDict):
    """A training set over the generator seeds; `measures`: the means of other metrics."""

    kind: str
    multiple: int
    values: list[float]
    mean: float
    sd: float | None
    interval: Interval
    population: Interval
    ratio: float | None
    ratio_interval: Interval
    measures: dict[str, float]


class WorthResult(TypedDict):
    """`results/worth.json`; `validation`: what each arm of real images alone has there, `copies` by multiple."""

    name: str
    metric: str
    seeds: list[int]
    judge_seeds: int
    images: dict[str, int]
    reference: str
    validation: dict[str, float]
    arms: dict[str, WorthArm]
    comparisons: list[Compared]
    copies: dict[str, WorthCopies]
    fidelity: dict[str, dict[str, list[float]]]
    left_out: dict[str, str]
    effect: float | None
    covers: str
    recipe: dict[str, object]
    training_images: NotRequired[int]
