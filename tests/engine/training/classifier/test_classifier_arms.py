"""Arms: their names, the rows they draw, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError, DataError
from engine.spec.classifier import TrainSpec
from engine.training.classifier.classifier_arms import (
    REAL,
    RECONSTRUCTED,
    SYNTHETIC,
    Arm,
    arms,
    check,
    mixture,
    parts,
    reference,
)

EVERY = (
    "real",
    "replacement",
    "augmentation",
    "few_shot",
    "few_shot_augmentation",
    "duplicated",
    "reconstructed",
    "curve",
)
LABELS = {
    REAL: np.repeat(np.arange(4), [5, 10, 20, 5]),
    RECONSTRUCTED: np.repeat(np.arange(4), [5, 10, 20, 5]),
    SYNTHETIC: np.arange(118) % 4,
}
INDEX = np.delete(np.arange(120), [7, 90])
N = 40


def everything(**more: Any) -> TrainSpec:
    return TrainSpec.model_validate({"arms": EVERY, "multiples": [2, 1], "shots": [3], "curve": [8, 16], **more})


def test_names_and_order_of_arms() -> None:
    assert [arm.key for arm in arms(everything())] == [
        "real",
        "replacement_1x",
        "replacement_2x",
        "augmentation_1x",
        "augmentation_2x",
        "few_shot_3",
        "few_shot_3_augmentation_1x",
        "few_shot_3_augmentation_2x",
        "duplicated_1x",
        "duplicated_2x",
        "reconstructed",
        "real_8",
        "real_16",
    ]
    assert reference(everything()) == "real"
    assert reference(everything(arms=["replacement"])) == "replacement_1x"


@pytest.mark.parametrize("arm", arms(everything()), ids=lambda arm: arm.key)
def test_rows_of_every_arm(arm: Arm) -> None:
    made = parts(arm, 0, LABELS, INDEX, N)
    drawn = [(part.of, len(part.rows)) for part in made]
    synthetic = {0: 0, 1: 39, 2: 78}[arm.multiple if arm.needs_synthetic else 0]  # planned index 7 is gone
    expected = {
        "real": [(REAL, 40)],
        "replacement": [(SYNTHETIC, synthetic)],
        "augmentation": [(REAL, 40), (SYNTHETIC, synthetic)],
        "few_shot": [(REAL, 12)],
        "few_shot_augmentation": [(REAL, 12), (SYNTHETIC, synthetic)],
        "duplicated": [(REAL, 40), (REAL, 40 * arm.multiple)],
        "reconstructed": [(RECONSTRUCTED, 40)],
        "curve": [(REAL, arm.images)],
    }[arm.kind]
    if arm.multiple == 2 and arm.needs_synthetic:
        expected[-1] = (SYNTHETIC, int((INDEX < 80).sum()))
    assert drawn == expected
    if arm.kind == "duplicated":
        assert set(np.bincount(made[1].rows).tolist()) == {arm.multiple}


def test_subsets_are_stratified_nested_and_drawn_by_the_seed() -> None:
    shots = parts(Arm("few_shot", shots=3), 0, LABELS, INDEX, N)[0].rows
    assert np.bincount(LABELS[REAL][shots]).tolist() == [3, 3, 3, 3]
    small, large = (parts(Arm("curve", images=k), 0, LABELS, INDEX, N)[0].rows for k in (8, 16))
    assert set(small) < set(large)
    assert np.bincount(LABELS[REAL][large]).tolist() == [2, 4, 8, 2]
    assert parts(Arm("curve", images=16), 1, LABELS, INDEX, N)[0].rows.tolist() != large.tolist()


def test_the_share_of_the_recipe_reaches_the_batches() -> None:
    spec = everything(share=0.25, batch=16)
    plan = mixture(spec, parts(Arm("augmentation", multiple=2), 0, LABELS, INDEX, N), LABELS, 0)
    assert all(int(plan.draw(step).source.sum()) == 4 for step in range(10))


@pytest.mark.parametrize(
    ("change", "held", "error"),
    [
        ({"arms": ["augmentation"], "multiples": [4]}, (10, 50), "train.multiples"),
        ({"arms": ["few_shot"], "shots": [6]}, (10, 50), "train.shots"),
        ({"arms": ["curve"], "curve": [41]}, (10, 50), "train.curve"),
        ({"arms": ["curve"], "curve": [3]}, (10, 50), "train.curve"),
        ({"select": "best"}, (0, 50), "train.select: needs a validation split"),
        ({"validate_every": 5}, (0, 50), "train.validate_every: needs a validation split"),
        ({}, (10, 0), "needs a test split"),
        ({"batch": 15}, (10, 50), "train.batch"),
        ({"batch": 6, "mixup": 0.2}, (10, 50), "in pairs for mixup"),
        ({"reference": "augmentation_5x"}, (10, 50), "train.reference"),
    ],
)
def test_what_cannot_be_is_one_line(change: dict[str, Any], held: tuple[int, int], error: str) -> None:
    spec = everything(**change)
    with pytest.raises(ConfigError) as caught:
        check(spec, np.bincount(LABELS[REAL]), 120, *held, workers=2)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_arm_without_any_synthetic_image_left_is_refused() -> None:
    with pytest.raises(DataError, match="none of its synthetic images is left"):
        parts(Arm("replacement", multiple=1), 0, LABELS, np.arange(100, 120), N)
