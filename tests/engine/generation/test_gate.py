"""The gate's reasons, their order, and the budget's threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError
from engine.generation.gate import MIN_JUDGED, Budget, Gate, _least_std
from engine.spec.recipe import GateSpec


def image(value: Any) -> np.ndarray:
    return np.broadcast_to(np.asarray(value, np.uint8), (8, 8, 3))


def checkered(low: int, high: int) -> np.ndarray:
    """Half the pixels `low`, half `high`: the standard deviation is (high - low) / 2."""
    board = (np.indices((8, 8)).sum(0) % 2)[..., None]
    return np.broadcast_to(np.where(board, high, low), (8, 8, 3)).astype(np.uint8)


@pytest.mark.parametrize("colour", [0, 255, 128, (255, 0, 0), (3, 200, 77)])
def test_uniform_colour_is_constant(colour: Any) -> None:
    assert Gate(GateSpec()).check(image(colour)) == "constant_image"


@given(low=st.integers(0, 255), high=st.integers(0, 255), least=st.integers(0, 60))
def test_constant_means_a_standard_deviation_below_the_threshold(low: int, high: int, least: int) -> None:
    reason = Gate(GateSpec(min_std=least)).check(checkered(low, high))
    assert (reason == "constant_image") == (abs(high - low) / 2 < least)


@settings(deadline=None)
@given(
    side=st.sampled_from([1, 2, 8, 33, 46, 64, 128]),
    contrast=st.sampled_from([0, 1, 2, 5, 40, 255]),
    share=st.sampled_from([0.0, 0.0002, 0.01, 0.5, 1.0]),
    least=st.sampled_from([0, 0.25, 1, 5, 20]),
    seed=st.integers(0, 2**32),
)
def test_the_quick_look_decides_as_the_whole_image_does(
    side: int, contrast: int, share: float, least: float, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    noise = chance.integers(0, contrast + 1, (side, side, 3)) * (chance.random((side, side, 1)) < share)
    pixels = noise.astype(np.uint8)
    expected = float(pixels.reshape(-1, 3).astype(np.float32).std(axis=0).max()) < least
    assert (Gate(GateSpec(min_std=least)).check(pixels) is not None) == expected
    assert _least_std(pixels.reshape(-1, 3)) <= pixels.reshape(-1, 3).std(axis=0).max() + 1e-4


def test_one_varying_channel_is_enough() -> None:
    pixels = image(90).copy()
    pixels[..., 2] = checkered(0, 200)[..., 0]
    assert Gate(GateSpec(min_std=50)).check(pixels) is None


@pytest.mark.parametrize(
    ("score", "reason"),
    [(0.3, None), (0.25, None), (0.2499, "low_clip_score"), (None, "low_clip_score"), (float("nan"), "low_clip_score")],
)
def test_clip_score_threshold(score: float | None, reason: str | None) -> None:
    gate = Gate(GateSpec(min_clip_score=0.25))
    assert gate.check(checkered(0, 255), score) == reason


def test_constant_comes_before_the_score_and_no_score_is_asked_without_a_threshold() -> None:
    assert Gate(GateSpec(min_clip_score=0.25)).check(image(7), 0.1) == "constant_image"
    assert Gate(GateSpec()).check(checkered(0, 255)) is None


def add_one_by_one(budget: Budget, reasons: list[str | None]) -> int | None:
    """How many samples were done when the budget stopped the run."""
    for done, reason in enumerate(reasons, start=1):
        try:
            budget.add(1, [reason] if reason else [])
        except DataError:
            return done
    return None


def test_the_whole_plan_failing_stops_at_the_minimum() -> None:
    assert add_one_by_one(Budget(GateSpec(max_quarantined=0.1), 10_000), ["constant_image"] * 10_000) == MIN_JUDGED


def test_a_small_plan_is_judged_at_its_end() -> None:
    spec = GateSpec(max_quarantined=0.1)
    assert add_one_by_one(Budget(spec, 20), [*["constant_image"] * 3, *[None] * 17]) == 20
    assert add_one_by_one(Budget(spec, 20), [*["constant_image"] * 2, *[None] * 18]) is None


def test_no_tolerance_stops_at_the_first() -> None:
    assert add_one_by_one(Budget(GateSpec(max_quarantined=0), 1000), [None, "low_clip_score", None]) == 2


def test_full_tolerance_never_stops() -> None:
    assert add_one_by_one(Budget(GateSpec(max_quarantined=1), 500), ["constant_image"] * 500) is None


@given(share=st.floats(0.001, 1), reasons=st.lists(st.sampled_from([None, None, None, "a", "b"]), max_size=400))
def test_a_run_that_ends_is_within_budget(share: float, reasons: list[str | None]) -> None:
    budget = Budget(GateSpec(max_quarantined=share), max(1, len(reasons)))
    if add_one_by_one(budget, reasons) is None and reasons:
        assert budget.quarantined == sum(r is not None for r in reasons) <= share * len(reasons)


def test_a_run_just_within_its_budget_is_hardly_ever_stopped_on_the_way() -> None:
    random = np.random.default_rng(0)
    stopped = 0
    for _ in range(200):
        failed = random.permutation(np.arange(3000) < 30)  # exactly 1 %
        stopped += (
            add_one_by_one(Budget(GateSpec(max_quarantined=0.01), 3000), ["x" if f else None for f in failed])
            is not None
        )
    assert stopped <= 4


def test_a_run_well_over_its_budget_is_stopped_early() -> None:
    random = np.random.default_rng(1)
    failed = ["x" if f else None for f in random.random(100_000) < 0.05]
    done = add_one_by_one(Budget(GateSpec(max_quarantined=0.01), 100_000), failed)
    assert done is not None
    assert done < 1000


def test_the_message_names_the_most_frequent_reason() -> None:
    budget = Budget(GateSpec(max_quarantined=0.01), 1000)
    with pytest.raises(DataError, match=r"25 of 1000 .* non_finite_latents \(15\)") as caught:
        budget.add(1000, ["constant_image"] * 10 + ["non_finite_latents"] * 15)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
