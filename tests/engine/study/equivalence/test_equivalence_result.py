"""What a study says where the truth is planted: a price of 1, no value, saturation, and advice that follows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy import stats

from engine.report import equivalence_page as pages
from engine.study.equivalence.equivalence_advice import advice, further
from engine.study.equivalence.lackoffit import lack_of_fit
from engine.study.equivalence.real_curve import accuracy, angles
from engine.study.equivalence.result import NOT_OF_FORM, Analysis, Measured
from tests.support.equivalence import BASES, MULTIPLES, SIZES, peaked, simulate, true_accuracy


def study(synthetic: Any, seed: int = 0, curve: Any = true_accuracy, generators: int = 4) -> dict[str, Any]:
    """A study's result where `synthetic(base, n_syn)` gives the accuracy that base and synthetic images have."""
    rng = np.random.default_rng(seed)

    def noisy(share: float) -> Any:
        return accuracy(angles(share) + rng.normal() * 0.003 + rng.normal(size=5) * 0.006)

    real = [[noisy(curve(n)) for n in SIZES] for _ in range(generators)]
    made = [[[noisy(synthetic(n, m * n)) for m in MULTIPLES] for n in BASES] for _ in range(generators)]
    result = Analysis(Measured(SIZES, BASES, MULTIPLES, np.array(real), np.array(made)), 400).to_json()
    result |= {"name": "planted", "generator": "closed-set", "synthetic": "generator"}
    return result | {"advice": advice(result)}


def further_real(seed: int) -> Analysis:
    """A study whose synthetic images are further real ones."""
    rng, multiples, bases = np.random.default_rng(seed), (1, 2, 5), (50, 100)

    def noisy(n: float) -> Any:
        return accuracy(angles(true_accuracy(n)) + rng.normal() * 0.003 + rng.normal(size=5) * 0.006)

    real = np.array([[noisy(n) for n in SIZES] for _ in range(4)])
    made = np.array([[[noisy(n * (1 + m)) for m in multiples] for n in bases] for _ in range(4)])
    return Analysis(Measured(SIZES, bases, multiples, real, made), 200)


def test_further_real_images_have_a_price_of_one() -> None:
    """In 40 studies the 95 % intervals of both prices hold 1, and what images are worth is their number."""
    studies = [further_real(seed) for seed in range(40)]
    least = int(stats.binom.ppf(0.001, 40, 0.95))  # as many of 40 intervals hold the truth in 999 of 1,000 cases
    for b, base in enumerate((50, 100)):
        assert (
            sum(found.verdict(b) == "identifiable" for found in studies) >= least
        )  # 5 % are not said to be of the form
        for name in ("marginal", "doubling"):
            ends = [found.interval(getattr(found.fit, name)[:, b]) for found in studies]
            assert sum((low or 0) <= 1 <= (high or np.inf) for low, high in ends) >= least
        for k, multiple in enumerate((1, 2, 5)):
            ends = [found.interval(found.x[:, b, k] * base) for found in studies]
            assert sum((low or 0) <= multiple * base <= (high or np.inf) for low, high in ends) >= least


def test_images_that_lower_the_accuracy_have_no_value() -> None:
    result = study(lambda base, n: true_accuracy(base) - 0.05)
    assert {base["verdict"] for base in result["bases"]} == {"no value: synthetic images lower the accuracy"}
    assert result["c2"] is None
    assert {entry["action"] for entry in result["advice"]} == {"label"}
    assert all(base["marginal_price"] is None for base in result["bases"])


def test_images_that_lower_the_accuracy_have_no_value_however_little_is_known_of_the_real_curve() -> None:
    rng = np.random.default_rng(0)
    found = study(lambda base, n: 0.5, curve=lambda n: rng.uniform(0.9, 0.96))
    assert {base["verdict"] for base in found["bases"]} == {"no value: synthetic images lower the accuracy"}


def test_a_gain_within_noise_is_not_identifiable() -> None:
    result = study(lambda base, n: true_accuracy(base))
    assert {base["verdict"] for base in result["bases"]} <= {
        "not identifiable: the gain is within noise",
        "no value: synthetic images lower the accuracy",
    }


def test_saturated_real_data_is_said_to_be_so() -> None:
    result = study(lambda base, n: 0.97, curve=lambda n: 0.97)
    assert {entry["action"] for entry in result["advice"]} == {"stop"}
    assert "saturated" in result["bases"][0]["verdict"]


def test_a_real_curve_within_noise_is_not_called_saturated() -> None:
    """Two repeats of a curve that rises by half of the errors, one of them by luck not at all."""
    rise = iter([0.97, 0.97, 0.97, 0.97, 0.97, 0.97, *[0.93] * 5, 0.97])
    result = study(lambda base, n: 0.95, curve=lambda n: next(rise, 0.95), generators=2)
    verdict = result["bases"][0]["verdict"]
    assert verdict == "not identifiable: what further real images give is within noise"
    assert result["advice"][0]["action"] == "label"


def test_advice_is_to_generate_while_more_of_them_is_worth_a_tenth_of_the_base() -> None:
    rng = np.random.default_rng(0)
    cheap = Analysis(simulate(rng, [2.0, 2.0, 2.0], 2.5), 200).to_json()
    assert [entry["action"] for entry in advice(cheap)] == ["generate"] * 3
    n, c = cheap["bases"][0], np.log(cheap["c2"]["value"])
    price = n["A"]["value"]
    by_hand = 50 * (np.log1p(40 / price) - np.log1p(20 / price)) / c
    assert further(n, cheap) == pytest.approx(by_hand)
    steep = Analysis(simulate(rng, [0.2, 0.2, 0.2], 5000.0), 200).to_json()
    assert {entry["action"] for entry in advice(steep)} == {"label"}


def test_the_page_and_the_figure_show_every_cell() -> None:
    result = study(lambda base, n: true_accuracy(base + n / 4))
    json.dumps(result, allow_nan=False)
    text = pages.markdown(result)
    for base in BASES:
        for multiple in MULTIPLES:
            assert f"| {base:,} | {base * multiple:,} |" in text
    assert all(entry["text"] in text for entry in result["advice"])
    other = result | {"generator": "open-set", "name": "other"}
    drawn = pages.figure([result, other]).decode()
    assert drawn.startswith("<?xml")
    assert pages.figure([result, other]).decode() == drawn
    assert pages.table(result).row_count == len(BASES) * len(MULTIPLES)


def test_curves_that_rise_and_fall_are_of_no_such_form_and_have_no_price() -> None:
    """Twenty studies with the recommended five repeats, of four shapes; the benchmark null_studies has 800."""
    found = []
    for seed in range(5):
        for height, end in ((1.0, 0.0), (0.5, 0.0), (0.3, 0.0), (0.5, 0.2)):
            study = Analysis(peaked(np.random.default_rng([seed, round(10 * height)]), height, end), 100, seed)
            found.append({study.verdict(b) for b in range(3)})
            told = study.to_json()
            assert told["lack_of_fit"]["p"] < 0.05 or found[-1] != {NOT_OF_FORM}
    assert sum(NOT_OF_FORM in verdicts for verdicts in found) >= 18
    assert sum("identifiable" in verdicts for verdicts in found) <= 2
    assert {entry["action"] for entry in advice(told)} == {"label"}


def test_true_curves_are_rarely_said_to_be_of_another_form() -> None:
    alarms = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        a, c2 = (([2.0, 3.0, 5.0], 2.5), ([20.0, 40.0, 80.0], 1.7), ([0.5, 1.0, 8.0], 38.0))[seed % 3]
        lack = Analysis(simulate(rng, a, c2), 100, seed).lack
        assert lack is not None
        alarms += lack.rejected
    assert alarms <= int(stats.binom.ppf(0.999, 30, 0.05))


def test_a_fall_is_seen_with_two_amounts_and_one_base_too() -> None:
    """The form may bend two points as it likes, but it does not fall."""
    rng = np.random.default_rng(0)
    sizes, y = np.array([50.0, 100, 200, 400]), np.array([1.0, 5.0])
    real = angles(true_accuracy(sizes)) + rng.normal(size=(5, 4)) * 0.003
    for rise, expected in ((0.02, False), (-0.02, True)):
        synthetic = 1.25 + np.array([0.0, rise]) + rng.normal(size=(5, 1, 2)) * 0.003
        lack = lack_of_fit(sizes, real, np.array([100.0]), y, synthetic, 199, 0)
        assert lack is not None
        assert lack.rejected == expected
    assert lack_of_fit(sizes, real, np.array([100.0]), y[:1], synthetic[..., :1], 99, 0) is None
