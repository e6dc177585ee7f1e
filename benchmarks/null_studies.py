"""How often a study of nothing finds something, and one of something misses it (python -m benchmarks.null_studies).

Studies are simulated down to the answer of each classifier on each image, and judged by the functions that `mimeo
search`, `study` and `equivalence` use. "no effect": images differ in difficulty, settings in which images they find
hard, generators in level, classifiers in level and in their answers; all settings have the same accuracy over the
population of images. Settings are compared on validation images, the best is chosen, and its gain over ratio 0 read on
test images with fresh generators and classifiers. "effects": the same with true gains, known by quadrature. "as
before": what earlier versions did in an ablation, for comparison: settings are compared, by Holm, on test images,
classifier seeds are shared by the generators, and intervals are over generators alone. "true curves", "peaked curves":
equivalence studies of the fitted form, and of accuracies that rise and fall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, roots_hermitenorm

from benchmarks import pairs
from engine.statistics.population import Floats
from engine.study.equivalence.result import NOT_OF_FORM, Analysis
from engine.study.search import search_summary
from engine.study.search.search_plan import Point

RATIOS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
POINTS = tuple(Point(ratio) for ratio in RATIOS)
GAINS = (0.0, 0.05, 0.10, 0.15, 0.20, 0.10, 0.0)  # in logits
CURVES = (([2.0, 3.0, 5.0], 2.5), ([20.0, 40.0, 80.0], 1.7), ([0.5, 1.0, 8.0], 38.0))
PEAKS = ((1.0, 0.0), (0.5, 0.0), (0.3, 0.0), (0.5, 0.2))  # worth at 5x and at 20x, of the base


@dataclass(frozen=True)
class Truth:
    """Standard deviations in logits: `images` of difficulty, `taste` of a setting's own difficulty of an image,
    `generator` and
    `judge` of levels, `answer` of a classifier's own view of an image; `level` the mean."""

    level: float = 3.5
    images: float = 2.0
    taste: float = 0.5
    generator: float = 0.10
    judge: float = 0.10
    answer: float = 1.0
    gains: tuple[float, ...] = (0.0,) * len(RATIOS)

    def accuracy(self, setting: int) -> float:
        """Over the population of images, generators and classifiers, by Gauss and Hermite's rule."""
        x, weights = roots_hermitenorm(60)
        generator = self.generator if setting else 0.0
        spread = np.sqrt(self.images**2 + self.taste**2 + generator**2 + self.judge**2 + self.answer**2)
        return float((weights * expit(self.level + self.gains[setting] + spread * x)).sum() / weights.sum())

    def answers(
        self,
        rng: np.random.Generator,
        settings: Sequence[int],
        images: int,
        generators: int,
        judges: int,
        shared: bool = False,
    ) -> Floats:
        """Right or wrong (S, G, J, N) on newly drawn images; `shared`: classifier seeds are those of all generators."""
        s = len(settings)
        level = self.level + np.array([self.gains[k] for k in settings])[:, None, None, None]
        level = (
            level + self.images * rng.normal(size=(1, 1, 1, images)) + self.taste * rng.normal(size=(s, 1, 1, images))
        )
        varied = np.array([float(bool(k)) for k in settings])[:, None, None, None]  # ratio 0 has no generator
        level = level + self.generator * varied * rng.normal(size=(s, generators, 1, 1))
        level = level + self.judge * rng.normal(size=(s, 1 if shared else generators, judges, 1))
        level = level + self.answer * rng.normal(size=(s, generators, judges, images))
        return (rng.random(level.shape) < expit(level)).astype(float)


@dataclass(frozen=True)
class Found:
    """One study: the setting that was chosen, and of its gain on test images the finding and both intervals (none for
    ratio 0)."""

    chosen: int
    finding: str
    over_seeds: list[float | None]
    population: list[float | None]


def study(
    truth: Truth,
    seed: int,
    generators: int = 5,
    judges: int = 3,
    validation: int = 400,
    test: int = 899,
    *,
    before: bool = False,
) -> Found:
    """One search, by the functions that a search uses."""
    rng, every = np.random.default_rng(seed), list(range(len(RATIOS)))
    seen = truth.answers(rng, every, test if before else validation, generators, judges, before)
    answers = None if before else _right(seen, every)
    best = search_summary.choose(search_summary.curve(_values(seen, every), generators * judges, 100, answers))
    chosen, gain = RATIOS.index(best["ratio"]), best["gain"]
    if chosen and not before:
        settings = [0, chosen]
        read = truth.answers(rng, settings, test, generators, judges)
        gain = search_summary.reading(POINTS[chosen], _values(read, settings), test, _right(read, settings))["gain"]
    if gain is None:
        return Found(0, "ratio 0", [None, None], [None, None])
    return Found(chosen, gain["finding"], gain["interval"], gain["population"])


def _values(answers: Floats, settings: Sequence[int]) -> dict[Point, dict[tuple[int, int], float]]:
    means = answers.mean(3)
    return {
        POINTS[k]: {(g, j): float(own[g, j]) for g in range(own.shape[0]) for j in range(own.shape[1])}
        for k, own in zip(settings, means, strict=True)
    }


def _right(answers: Floats, settings: Sequence[int]) -> dict[Point, Floats]:
    return {POINTS[k]: own.mean(1) for k, own in zip(settings, answers, strict=True)}


def holds(interval: Sequence[float | None], truth: float) -> bool:
    """Whether an interval with both ends holds the truth."""
    low, high = interval
    return low is not None and high is not None and low <= truth <= high


def searches(truth: Truth, count: int, **options: int | bool) -> dict[str, float]:
    """Shares of `count` studies: false or true "higher", and coverage of the chosen setting's true gain where one was
    chosen."""
    true = [truth.accuracy(k) for k in range(len(RATIOS))]
    found = [study(truth, seed, **options) for seed in range(count)]  # type: ignore[arg-type]
    compared = [one for one in found if one.chosen]
    gains = [true[one.chosen] - true[0] for one in compared]
    return {
        "higher": sum(one.finding == "higher" for one in found) / count,
        "population": sum(holds(one.population, gain) for one, gain in zip(compared, gains, strict=True))
        / len(compared),
        "seeds": sum(holds(one.over_seeds, gain) for one, gain in zip(compared, gains, strict=True)) / len(compared),
        "compared": len(compared),
    }


def unlike(studies: Sequence[Analysis]) -> float:
    """The share of equivalence studies in which a base is said to be not of the form."""
    return sum(NOT_OF_FORM in [one.verdict(b) for b in range(len(one.base))] for one in studies) / len(studies)


def priced(studies: Sequence[Analysis]) -> float:
    """The share in which a base has a price."""
    return sum("identifiable" in [one.verdict(b) for b in range(len(one.base))] for one in studies) / len(studies)


def error(share: float, of: float) -> float:
    """Two standard errors of a share of `of` cases, relative to it."""
    return 2 * float(np.sqrt(share * (1 - share) / of)) / share if share else 0.0


row = pairs.judged


def selections(count: int) -> list[pairs.Row]:
    """How often a selection finds what is not there, and whether its intervals hold what is."""
    rows = []
    for name, options in (("5 generators", {"generators": 5}), ("3 generators", {"generators": 3})):
        told = searches(Truth(), count, **options)
        case, false = f"no effect, {name}", error(told["higher"], count)
        rows.append(row(case, "of studies find a false higher", told["higher"], false, 0.025, at_most=True))
        noise = error(told["population"], told["compared"])
        rows.append(row(case, "of intervals over seeds and images hold 0", told["population"], noise, 0.93))
        rows.append(row(case, "of these, at most", told["population"], noise, 0.97, at_most=True))
        noise = error(told["seeds"], told["compared"])
        rows.append(row(case, "of intervals over seeds hold 0", told["seeds"], noise, None))
    told = searches(Truth(gains=GAINS), count)
    noise = error(told["population"], told["compared"])
    rows.append(row("effects", "of intervals over seeds and images hold them", told["population"], noise, 0.93))
    rows.append(row("effects", "of these, at most", told["population"], noise, 0.97, at_most=True))
    rows.append(row("effects", "of studies find higher", told["higher"], error(told["higher"], count), None))
    told = searches(Truth(), count, before=True)
    rows.append(row("as before", "of studies find a false higher", told["higher"], error(told["higher"], count), None))
    noise = error(told["seeds"], told["compared"])
    rows.append(row("as before", "of intervals over seeds hold 0", told["seeds"], noise, None))
    return rows


def forms(few: int, resamples: int) -> list[pairs.Row]:
    """How often curves of the fitted form, and curves that rise and fall, are said to be of no such form."""
    from tests.support.equivalence import peaked, simulate

    rows, rng = [], np.random.default_rng(0)
    for repeats in (5, 3):
        few = few if repeats == 5 else few // 2
        lacks = [
            Analysis(simulate(rng, a, c2, repeats), resamples, seed).lack for a, c2 in CURVES for seed in range(few)
        ]
        share = sum(lack is not None and lack.rejected for lack in lacks) / len(lacks)
        what, noise = "of studies are said to be of no such form", error(share, len(lacks))
        rows.append(row(f"true curves, {repeats} repeats", what, share, noise, 0.05, at_most=True))
        bent = [Analysis(peaked(rng, *shape, repeats), resamples, seed) for shape in PEAKS for seed in range(few)]
        share, case = unlike(bent), f"peaked curves, {repeats} repeats"
        rows.append(row(case, what, share, error(share, len(bent)), 0.9))
        rows.append(row(case, "of studies give a price", priced(bent), 0.0, None))
    return rows


def main() -> None:
    """Simulate, print, judge and keep."""
    arguments = pairs.parser(__doc__).parse_args()
    count, few, resamples = (20, 2, 100) if arguments.quick else (1000, 100, 100)
    pairs.finish("null_studies", [*selections(count), *forms(few, resamples)], arguments)


if __name__ == "__main__":
    main()
