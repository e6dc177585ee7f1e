"""Arms compared: means, intervals and ratios against scipy and numpy, on outcomes with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from engine.evaluation.judge_result import COVERS, compare
from engine.spec.recipe import JudgeSpec
from engine.training.judge_fit import arms
from tests.support.judged import outcome

SIZES = [50, 30, 20]
REAL = [[0.98, 0.9, 0.8], [0.96, 0.9, 0.85], [0.98, 0.8, 0.9]]
SYNTHETIC = [[0.9, 0.9, 0.7], [0.92, 0.8, 0.7], [0.92, 0.8, 0.75]]


def compared(kinds: tuple[str, ...] = ("real", "synthetic"), seeds: int = 3) -> dict:
    spec = JudgeSpec(arms=kinds, multiples=(10,), seeds=seeds)
    found = [outcome("real", s, REAL[s], SIZES, (10, 0)) for s in range(seeds)]
    found += [outcome("synthetic_10x", s, SYNTHETIC[s], SIZES, (0, 100)) for s in reversed(range(seeds))]
    return compare([o for o in found if o.arm.startswith(kinds)], arms(spec), SIZES)


def accuracies(shares: list[list[float]]) -> np.ndarray:
    return np.array([[round(s * n) for s, n in zip(row, SIZES, strict=True)] for row in shares]).sum(axis=1) / sum(
        SIZES
    )


def test_mean_interval_and_test_error() -> None:
    arm, values = compared()["real"], accuracies(REAL)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert arm["accuracies"] == values.tolist()
    assert arm["mean"] == pytest.approx(values.mean())
    assert arm["sd"] == pytest.approx(values.std(ddof=1))
    assert arm["interval"] == pytest.approx([reference.low, min(reference.high, 1)])
    assert arm["test_error"] == pytest.approx(math.sqrt(values.mean() * (1 - values.mean()) / 100))
    assert arm["ratio"] is None
    assert arm["ratio_interval"] == [None, None]


def test_the_ratio_is_paired_by_seed_whatever_the_order_of_outcomes() -> None:
    arm = compared()["synthetic_10x"]
    real, synthetic = accuracies(REAL), accuracies(SYNTHETIC)
    assert arm["accuracies"] == synthetic.tolist()
    assert arm["ratio"] == pytest.approx(synthetic.mean() / real.mean())
    for bound in arm["ratio_interval"]:
        assert stats.ttest_1samp(synthetic - bound * real, 0).pvalue == pytest.approx(0.05, abs=1e-6)


def test_classes_and_mistakes_are_means_over_seeds() -> None:
    arm = compared()["synthetic_10x"]
    assert arm["per_class"] == pytest.approx([(45 + 46 + 46) / 150, (27 + 24 + 24) / 90, (14 + 14 + 15) / 60])
    assert arm["confusions"][0] == [2, 0, pytest.approx((6 + 6 + 5) / 3)]
    assert [entry[2] for entry in arm["confusions"]] == sorted((e[2] for e in arm["confusions"]), reverse=True)


def test_without_a_real_arm_there_is_no_ratio() -> None:
    arm = compared(("synthetic",))["synthetic_10x"]
    assert arm["ratio"] is None


def test_one_seed_has_no_interval() -> None:
    arm = compared(seeds=1)["synthetic_10x"]
    assert arm["sd"] is None
    assert arm["interval"] == arm["ratio_interval"] == [None, None]
    assert arm["ratio"] == pytest.approx(accuracies(SYNTHETIC)[0] / accuracies(REAL)[0])


def test_a_class_without_test_images_has_no_accuracy() -> None:
    sizes = [10, 0]
    found = [outcome("real", 0, [0.9, 0.0], sizes, (5, 0))]
    assert compare(found, arms(JudgeSpec(arms=("real",))), sizes)["real"]["per_class"] == [0.9, None]


def test_it_says_what_the_intervals_cover() -> None:
    assert "judge seeds" in COVERS
    assert "not another generator seed" in COVERS
