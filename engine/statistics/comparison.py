"""Paired comparison of arms over repeated runs: differences with intervals, what was found, and how many repeats would
settle it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
from scipy import stats

from engine.statistics.intervals import Interval, mean_interval, spread, standard_deviation
from engine.statistics.nested import NO_VERDICT
from engine.statistics.population import Floats, pooled
from engine.statistics.published import Compared, StudyGroup

LEVEL = 0.95
POWER = 0.8
MOST = 1 << 14


@dataclass(frozen=True)
class Comparison:
    """Arm minus reference over n pairs, a generator seed each: mean difference and its Student-t interval over these.

    `population`: the interval over seeds and test images together, where each image's answers are known. `p`: of a
    difference of zero, by the population's error where it is known, else by the paired t-test over seeds; `p_adjusted`
    by Holm over the arms. `needed`: generator seeds that would show a true difference of `effect`, stated beforehand,
    with 80 % power at 5 % over the number of comparisons (what Holm asks of the smallest p); None where there is no
    spread. `finding`: higher, lower, no difference found, or, with one generator seed, no verdict.
    """

    arm: str
    reference: str
    pairs: int
    difference: float
    interval: list[float | None]
    population: list[float | None]
    p: float | None
    p_adjusted: float | None
    effect: float | None
    needed: int | None
    finding: str

    def to_json(self) -> Compared:
        """Plain data."""
        return cast(Compared, asdict(self))


def compare(
    values: Mapping[str, Sequence[float]],
    reference: str,
    *,
    right: Mapping[str, Floats] | None = None,
    effect: float | None = None,
    one_generator: Collection[str] = (),
) -> list[Comparison]:
    """Every other arm against `reference`; `values[arm][i]` are paired by i. Holm's step-down holds over the arms
    together.

    `right[arm]` (G, N): the share of a generator seed's judges that have each test image right. `one_generator`: arms
    whose pairs are classifiers of one and the same generator seed: their spread is shown, and gives no verdict.
    """
    others = [arm for arm in values if arm != reference]
    differences = {arm: np.subtract(values[arm], values[reference]) for arm in others}
    over_images = {arm: pooled(right[arm] - right[reference]) for arm in others} if right else {}
    raw = {arm: found.p if (found := over_images.get(arm)) else _p(differences[arm]) for arm in others}
    raw |= dict.fromkeys(arm for arm in others if arm in one_generator)
    adjusted = holm({arm: p for arm, p in raw.items() if p is not None})
    return [
        Comparison(
            arm=arm,
            reference=reference,
            pairs=len(found),
            difference=float(found.mean()),
            interval=mean_interval(found.tolist(), LEVEL).as_list(),
            population=(pool.interval(LEVEL) if (pool := over_images.get(arm)) else Interval(None, None)).as_list(),
            p=raw[arm],
            p_adjusted=adjusted.get(arm),
            effect=effect,
            needed=None
            if arm in one_generator or not effect
            else pairs_needed(effect, standard_deviation(found.tolist()), len(others)),
            finding=NO_VERDICT
            if arm in one_generator or len(found) < 2
            else _finding(float(found.mean()), adjusted.get(arm)),
        )
        for arm, found in differences.items()
    ]


def arms_and_comparisons(
    values: Mapping[str, Sequence[float]],
    reference: str,
    right: Mapping[str, Floats] | None = None,
    effect: float | None = None,
) -> StudyGroup:
    """For JSON: each arm's values (shares, one a generator seed) with mean, sd and intervals, and every other arm
    against `reference`."""
    return {
        "arms": {
            arm: {"values": list(own), **spread(own), "population": population(right[arm] if right else None)}
            for arm, own in values.items()
        },
        "comparisons": [found.to_json() for found in compare(values, reference, right=right, effect=effect)],
    }


def population(right: Floats | None) -> list[float | None]:
    """The interval of an arm's accuracy over seeds and images; no ends where answers are not known, or of one seed."""
    found = None if right is None else pooled(right)
    return [None, None] if found is None else found.interval(LEVEL).clipped(0, 1).as_list()


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Holm 1979, Scand. J. Stat. 6)."""
    out: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(values) - rank) * p))
        out[name] = largest
    return out


def pairs_needed(difference: float, deviation: float | None, comparisons: int = 1) -> int | None:
    """Smallest n with which the two-sided paired t-test shows `difference` at standard deviation `deviation` with 80 %
    power.

    At 5 % over the number of `comparisons`: Holm's first step, Bonferroni's. By the noncentral t distribution.
    """
    if not deviation or not difference:
        return None
    alpha = (1 - LEVEL) / max(comparisons, 1)
    effect, low, high = abs(difference) / deviation, 2, 2
    while _power(effect, high, alpha) < POWER:
        low, high = high, 2 * high
        if high > MOST:
            return None
    return next(n for n in range(low, high + 1) if _power(effect, n, alpha) >= POWER)


def _power(effect: float, n: int, alpha: float) -> float:
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    shift = effect * math.sqrt(n)
    above, below = stats.nct.sf(critical, n - 1, shift), stats.nct.cdf(-critical, n - 1, shift)
    return float(np.nan_to_num(above, nan=1.0) + np.nan_to_num(below, nan=0.0))  # NaN where the shift is very large


def _p(differences: np.ndarray) -> float | None:
    if len(differences) < 2 or float(differences.std()) == 0:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _finding(difference: float, p: float | None) -> str:
    if p is None or p >= 1 - LEVEL:
        return "no difference found"
    return "higher" if difference > 0 else "lower"
