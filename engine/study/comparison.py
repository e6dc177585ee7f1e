"""Paired comparison of arms over repeated runs: differences with intervals, what was found, and how many repeats would settle it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from engine.study.statistics import mean_interval, spread, standard_deviation

LEVEL = 0.95
POWER = 0.8
MOST = 1 << 14


@dataclass(frozen=True)
class Comparison:
    """Arm minus reference over n pairs: mean difference, its Student-t interval, p of the paired t-test (Holm-adjusted too).

    `needed`: pairs that would show a true difference of the observed size with 80 % power; None where there is no spread or no
    difference. `finding`: higher, lower or no difference found, by the adjusted p.
    """

    arm: str
    reference: str
    pairs: int
    difference: float
    interval: list[float | None]
    p: float | None
    p_adjusted: float | None
    needed: int | None
    finding: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def compare(values: Mapping[str, Sequence[float]], reference: str) -> list[Comparison]:
    """Every other arm against `reference`; `values[arm][i]` are paired by i. Holm's step-down holds over the arms together."""
    differences = {arm: np.subtract(own, values[reference]) for arm, own in values.items() if arm != reference}
    raw = {arm: _p(found) for arm, found in differences.items()}
    adjusted = holm({arm: p for arm, p in raw.items() if p is not None})
    return [
        Comparison(
            arm=arm,
            reference=reference,
            pairs=len(found),
            difference=float(found.mean()),
            interval=mean_interval(found.tolist(), LEVEL).as_list(),
            p=raw[arm],
            p_adjusted=adjusted.get(arm),
            needed=pairs_needed(float(found.mean()), standard_deviation(found.tolist())),
            finding=_finding(float(found.mean()), adjusted.get(arm)),
        )
        for arm, found in differences.items()
    ]


def arms_and_comparisons(values: Mapping[str, Sequence[float]], reference: str) -> dict[str, Any]:
    """For JSON: each arm's values (shares, one a repeat) with mean, sd and interval, and every other arm against `reference`."""
    return {
        "arms": {arm: {"values": list(own), **spread(own)} for arm, own in values.items()},
        "comparisons": [found.to_json() for found in compare(values, reference)],
    }


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p-values (Holm 1979, Scand. J. Stat. 6)."""
    out: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(values) - rank) * p))
        out[name] = largest
    return out


def pairs_needed(difference: float, deviation: float | None) -> int | None:
    """Smallest n with which the two-sided paired t-test at 5 % shows `difference` at standard deviation `deviation` with 80 % power.

    By the noncentral t distribution.
    """
    if not deviation or not difference:
        return None
    effect, low, high = abs(difference) / deviation, 2, 2
    while _power(effect, high) < POWER:
        low, high = high, 2 * high
        if high > MOST:
            return None
    return next(n for n in range(low, high + 1) if _power(effect, n) >= POWER)


def _power(effect: float, n: int) -> float:
    critical = stats.t.ppf(1 - (1 - LEVEL) / 2, n - 1)
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
