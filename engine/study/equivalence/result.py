"""What an equivalence study found: prices with intervals, what is not identifiable, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.statistics.intervals import mean_interval
from engine.study.equivalence.fit import Fit, fit, gained, paper_form
from engine.study.equivalence.lackoffit import Lack, lack_of_fit
from engine.study.equivalence.real_curve import Bools, Curve, Floats, accuracy, angles, repeats
from engine.study.publishedresults import EquivalenceFindings, PricedBase, Rms
from engine.study.studyresults import Amount, Estimate, RealAccuracy

LEVEL = 0.95
COVERS = (
    "Intervals are 95 % intervals over the repeats (another order of the real images, "
    "another generator, other classifiers), by a "
    "multivariate-t bootstrap of the repeats' mean accuracies, which propagates the error "
    "of the real curve too. One split of one "
    "data set: another draw of test images is not covered."
)

NOT_OF_FORM = "not of this form: accuracy does not rise with the amount as the fitted curve does"
MOST_DRAWS = 499  # of the lack-of-fit test, whose p is compared with 5 %
SATURATED = 0.25  # in the logarithm of the errors: all real images remove at most a fifth of the base's errors


@dataclass(frozen=True)
class Measured:
    """Accuracies on the test split: `real` (G, S, J) at S `sizes` of the real set, `synthetic` (G, B, K, J) for B
    `bases` held and K `multiples`.

    G repeats, J classifiers each.
    """

    sizes: tuple[int, ...]
    bases: tuple[int, ...]
    multiples: tuple[int, ...]
    real: Floats
    synthetic: Floats

    @classmethod
    def of(cls, cells: Mapping[str, Mapping[str, Sequence[float]]], generators: int) -> Measured:
        """From the accuracies of all cells by `Cell.key`."""
        bases = tuple(sorted({int(key.split("-")[0]) for key in cells if not key.startswith("real-")}))
        sizes = tuple(sorted(int(size) for size in cells["real-0"]))
        multiples = tuple(sorted(int(m) for m in cells[f"{bases[0]}-0"]))
        real = [[cells[f"real-{g}"][str(n)] for n in sizes] for g in range(generators)]
        synthetic = [[[cells[f"{base}-{g}"][str(m)] for m in multiples] for base in bases] for g in range(generators)]
        return cls(sizes, bases, multiples, np.array(real), np.array(synthetic))


class Analysis:
    """The fit of one study and its `resamples` bootstrap draws."""

    def __init__(self, measured: Measured, resamples: int, seed: int = 0) -> None:
        self.measured = measured
        self.y = np.array(measured.multiples, float)
        self.base = np.array(measured.bases, float)
        units = np.concatenate(
            [angles(measured.real).mean(2), angles(measured.synthetic).mean(3).reshape(len(measured.real), -1)], axis=1
        )
        drawn = repeats(units, resamples, np.random.default_rng(seed))
        self.curve = Curve(np.array(measured.sizes, float), units.mean(0)[: len(measured.sizes)])
        x, above = self._gains(np.concatenate([units.mean(0)[None], drawn]))
        self.weights = self._weights(x[0])
        self.x, self.above = x, above
        self._draws, self._seed = min(resamples, MOST_DRAWS), seed

    @cached_property
    def fit(self) -> Fit:
        """Row 0 is the estimate, the others are draws."""
        return fit(self.x, self.above, self.y, self.weights)

    def _gains(self, units: Floats) -> tuple[Floats, Bools]:
        """n_real+ / n_base (D, B, K) of each draw, read off its own real curve, and which are lower bounds."""
        s = len(self.measured.sizes)
        sizes, shape = np.array(self.measured.sizes, float), (len(units), len(self.base), len(self.y))
        x, above = np.empty(shape), np.zeros(shape, bool)
        for d, row in enumerate(units):
            worth, over = Curve(sizes, row[:s]).worth(row[s:])
            x[d] = worth.reshape(shape[1:]) / self.base[:, None] - 1
            above[d] = over.reshape(shape[1:])
        return x, above

    def _weights(self, x: Floats) -> Floats:
        """(B, K) about 1 / variance of the gains: (d angle / d gain)^2, over a range of four in size; equal errors of
        all angles.

        Taken from the curve's slope and not from the repeats' spread, which would favour what happens to agree among
        few repeats.
        """
        size = self.base[:, None] * (1 + x)
        rise = self.curve.at(2 * size) - self.curve.at(size / 2)
        slope = np.maximum(rise, 1e-4) / (1.5 * size / self.base[:, None])
        return slope**2

    def interval(self, values: Floats) -> list[float | None]:
        """The 95 % percentile interval of draws (row 0, the estimate, left out); None for an end that is infinite."""
        ends = np.quantile(values[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
        return [float(end) if np.isfinite(end) else None for end in ends]

    @cached_property
    def gain(self) -> list[Any]:
        """The mean gain over all amounts, in accuracy, of each base over its own repeats' real accuracy: (mean,
        interval)."""
        out = []
        for b, base in enumerate(self.measured.bases):
            held = self.measured.real[:, self.measured.sizes.index(base)].mean(1)
            found = (self.measured.synthetic[:, b].mean((1, 2)) - held).tolist()
            out.append((float(np.mean(found)), mean_interval(found, LEVEL).as_list()))
        return out

    @cached_property
    def lack(self) -> Lack | None:
        """Whether the accuracies have the form that is fitted."""
        real, synthetic = angles(self.measured.real).mean(2), angles(self.measured.synthetic).mean(3)
        sizes = np.array(self.measured.sizes, float)
        return lack_of_fit(sizes, real, self.base, self.y, synthetic, self._draws, self._seed)

    def verdict(self, b: int) -> str:
        """Whether base `b` has a price: "identifiable", or why it has none. Bases share c2, so one that is not of the
        form spoils all.

        Accuracies are compared, repeat by repeat, by the logarithm of the ratio of their errors: learning curves are
        about power laws of the error, so that its spread is about the same for easy and for hard orders of the real
        images.
        """
        held, top = (self.measured.real[:, k].mean(1) for k in (self.measured.sizes.index(self.measured.bases[b]), -1))
        found = mean_interval(_fewer_errors(held, self.measured.synthetic[:, b].mean((1, 2))).tolist(), LEVEL)
        if found.high is not None and found.high < 0:
            return "no value: synthetic images lower the accuracy"  # however little is known of the real curve
        rise = mean_interval(_fewer_errors(held, top).tolist(), LEVEL)
        if rise.low is None or rise.high is None or rise.low <= 0:
            if rise.high is not None and rise.high < SATURATED:
                return "not identifiable: real accuracy is saturated at this base"
            return "not identifiable: what further real images give is within noise"
        if self.lack is not None and self.lack.rejected:
            return NOT_OF_FORM
        if found.low is None or found.low <= 0:
            return "not identifiable: the gain is within noise"
        if self.interval(self.fit.marginal[:, b])[1] is None:
            return "not identifiable: the price has no upper bound"
        return "identifiable"

    def to_json(self) -> EquivalenceFindings:
        """Everything that is reported, as plain data."""
        verdicts = [self.verdict(b) for b in range(len(self.base))]
        found = any(verdict == "identifiable" for verdict in verdicts)
        a, c = paper_form(self.x[0], self.above[0], self.y, self.weights, self.base)
        return {
            "sizes": list(self.measured.sizes),
            "real": self._real(),
            "bases": [self._base(b, verdict) for b, verdict in enumerate(verdicts)],
            "c2": {"value": float(self.fit.c2[0]), "interval": self.interval(self.fit.c2)} if found else None,
            "paper_form": {"ln_c1_over_k": a, "c2": float(np.exp(c)), "rms": self._rms_paper(a, c)} if found else None,
            "lack_of_fit": {"F": self.lack.statistic, "p": self.lack.p} if self.lack else None,
            "repeats": len(self.measured.real),
            "classifiers": self.measured.real.shape[2],
            "resamples": len(self.x) - 1,
            "level": LEVEL,
            "covers": COVERS,
        }

    def _real(self) -> list[RealAccuracy]:
        per_repeat = self.measured.real.mean(2)
        return [
            {
                "images": n,
                "accuracy": float(per_repeat[:, k].mean()),
                "interval": mean_interval(per_repeat[:, k].tolist(), LEVEL).clipped(0, 1).as_list(),
            }
            for k, n in enumerate(self.measured.sizes)
        ]

    def _base(self, b: int, verdict: str) -> PricedBase:
        whole = verdict == "identifiable"
        mean, interval = self.gain[b]
        return {
            "base": self.measured.bases[b],
            "verdict": verdict,
            "gain": {"value": mean, "interval": interval},
            "amounts": [self._amount(b, k) for k in range(len(self.y))],
            "A": self._scale(b) if whole else None,
            "marginal_price": self._quantity(self.fit.marginal[:, b]) if whole else None,
            "doubling_price": self._quantity(self.fit.doubling[:, b]) if whole else None,
            "rms": self._rms(b) if whole else None,
        }

    def _amount(self, b: int, k: int) -> Amount:
        """One measured cell: its accuracy, and what it is worth in further real images, read off the real curve without
        the fit.

        The interval's upper end is None where more than 2.5 % of the draws lie above the real curve.
        """
        values, base = self.measured.synthetic[:, b, k].mean(1), self.measured.bases[b]
        worth, above = self.x[:, b, k] * base, self.above[:, b, k]
        low, high = self.interval(worth)
        return {
            "multiple": self.measured.multiples[k],
            "synthetic": self.measured.multiples[k] * base,
            "accuracy": float(values.mean()),
            "interval": mean_interval(values.tolist(), LEVEL).clipped(0, 1).as_list(),
            "worth": float(worth[0]),
            "worth_interval": [low, high if above[1:].mean() < (1 - LEVEL) / 2 else None],
            "at_least": bool(above[0]),
        }

    def _quantity(self, values: Floats) -> Estimate:
        return {"value": float(values[0]), "interval": self.interval(values)}

    def _scale(self, b: int) -> Estimate:
        """A, by the interval of 1 / A; without an upper end where that holds 0, a price that does not rise."""
        low, high = self.interval(self.fit.v[:, b] * self.fit.c)
        ends = [1 / high if high else None, 1 / low if low and low > 0 else None]
        return {"value": float(self.fit.a[0, b]), "interval": ends}

    def _rms(self, b: int) -> Rms:
        """How far the fit is from the cells: in n_real+ / n_base and in accuracy."""
        return self._distance(b, gained(self.fit.c[0], self.fit.v[0, b], self.y))

    def _rms_paper(self, a: float, c: float) -> list[Rms]:
        rows = range(len(self.base))
        return [self._distance(b, gained(np.array(c), np.exp(-a * self.base[b]) / c, self.y)) for b in rows]

    def _distance(self, b: int, predicted: Floats) -> Rms:
        measured = self.measured.synthetic[:, b].mean((0, 2))
        told = accuracy(self.curve.at(self.base[b] * (1 + predicted)))
        return {
            "gain": float(np.sqrt(np.mean((predicted - self.x[0, b]) ** 2))),
            "accuracy": float(np.sqrt(np.mean((told - measured) ** 2))),
        }


def _fewer_errors(before: Floats, after: Floats) -> Floats:
    """ln(error before / error after) of accuracies; an error below 1 in 2,000 counts as that."""
    return np.log(np.maximum(1 - before, 5e-4)) - np.log(np.maximum(1 - after, 5e-4))
