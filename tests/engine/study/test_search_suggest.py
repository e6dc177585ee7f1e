"""Optuna and ASHA as a search uses them: nothing twice, what is finished is handed over, the bad are stopped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.study.search import rungs
from engine.study.search.search_plan import Point, Space
from engine.study.search.suggest import distributions, searcher

SPACE = Space(
    (
        ("ratio", (0.5, 1.0, 2.0, 5.0, 10.0, 20.0)),
        ("generate.guidance_scale", (1.0, 2.0, 4.0, 8.0)),
        ("generate.visual_token", ("own", "class")),
        ("generate.pairing", ("none",)),
    )
)


def _score(point: Point) -> float:
    """Best at ratio 5, guidance 4."""
    ratios, scales = SPACE.dimensions[0][1], SPACE.dimensions[1][1]
    scale = point.changes()["generate.guidance_scale"]
    return 0.9 - 0.02 * abs(ratios.index(point.ratio) - 3) - 0.02 * abs(scales.index(scale) - 2)


def _ask(chosen: Any, count: int) -> list[Point]:
    """Suggestions one at a time, each answered with its score, as Ray Tune does."""
    found = []
    for number in range(count):
        point = SPACE.point(chosen.suggest(f"t{number}"))
        chosen.on_trial_complete(f"t{number}", {"score": _score(point), "training_iteration": 1})
        found.append(point)
    return found


def test_no_setting_is_suggested_twice_and_the_whole_grid_can_be_walked() -> None:
    found = _ask(searcher(SPACE, [], 0, "score"), 48)
    assert sorted(p.key for p in found) == sorted(p.key for p in SPACE.points())


def test_finished_settings_are_handed_over_and_not_suggested_again() -> None:
    whole = _ask(searcher(SPACE, [], 3, "score"), 12)
    known = [(point, _score(point)) for point in whole[:7]]
    resumed = _ask(searcher(SPACE, known, 3, "score"), 5)
    assert not {p.key for p in resumed} & {p.key for p, _ in known}
    assert resumed == whole[7:]  # one at a time, suggestions follow from the seed and what is known


def test_the_estimator_looks_where_scores_are_high() -> None:
    best = sum(max(map(_score, _ask(searcher(SPACE, [], seed, "score"), 14))) for seed in range(6)) / 6
    every = sorted(map(_score, SPACE.points()), reverse=True)
    assert best > every[3]


def test_suggestions_at_the_same_time_differ() -> None:
    chosen = searcher(SPACE, [], 1, "score")
    together = [SPACE.point(chosen.suggest(f"t{number}")) for number in range(10)]
    assert len({p.key for p in together}) == 10


def test_numbers_are_ordered_and_words_are_categories() -> None:
    kinds = {name: type(found).__name__ for name, found in distributions(SPACE).items()}
    assert kinds["generate.guidance_scale"] == "IntDistribution"
    assert kinds["generate.visual_token"] == "CategoricalDistribution"


@pytest.mark.parametrize(("mean", "action"), [(0.4, "STOP"), (0.9, "CONTINUE")])
def test_rungs_know_what_earlier_sessions_saw(mean: float, action: str) -> None:
    known = {"0x": [0.6] * 8, "1x": [0.7] * 8, "2x": [0.5] * 2}
    chosen = rungs.scheduler(known, 8)
    assert chosen.set_search_properties("score", "max")
    trial = SimpleNamespace(trial_id="new")
    chosen.on_trial_add(None, trial)
    actions = [chosen.on_trial_result(None, trial, {"training_iteration": k, "score": mean}) for k in (1, 2)]
    assert actions == ["CONTINUE", action]
