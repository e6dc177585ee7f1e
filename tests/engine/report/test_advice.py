"""Each rule speaks when its number says so, with that number, and is silent otherwise."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from engine.evaluation.evaluationresults import Judged
from engine.evaluation.judge_result import compare
from engine.report.advice import advise
from engine.report.facts import Facts, gather
from engine.spec.recipe import JudgeSpec
from engine.storage import documents
from engine.training.judge_fit import Outcome, arms
from tests.support.hostile import JudgedRun
from tests.support.judged import outcome

SIZES = [400] * 5


@pytest.fixture(scope="module")
def base(judged_run: JudgedRun) -> Facts:
    return gather(judged_run.store, judged_run.spec)


def facts(base: Facts, shares: dict[str, list[Any]], **changes: Any) -> Facts:
    """The run with other judge results (400 test images a class), read back from their file, and nothing set aside."""
    multiples = tuple(sorted({int(key.split("_")[1][:-1]) for key in shares if "_" in key}))
    seeds = len(next(iter(shares.values())))
    kinds = tuple(dict.fromkeys(key.split("_")[0] for key in shares))
    found = [
        _validated(outcome(key, s, [share] * 5 if isinstance(share, float) else share, SIZES, (50, 150)))
        for key, values in shares.items()
        for s, share in enumerate(values)
    ]
    spec = JudgeSpec(arms=kinds, multiples=multiples or (1,), seeds=seeds)
    judge = {**(base.judge or {}), "arms": compare(found, arms(spec), SIZES), "test_per_class": SIZES, "n_test": 2000}
    text = json.dumps({**judge, "seeds": list(range(seeds))}).encode()
    quiet = {
        "judge": documents.parse(text, Judged, "results/judge.json"),
        "quarantined": Counter(),
        "bad_images": Counter(),
    }
    return replace(base, **{**quiet, **changes})


def _validated(one: Outcome) -> Outcome:
    """With the same accuracy on validation images, which advice goes by."""
    return replace(one, validation=one.accuracy)


def told(given: Facts) -> dict[str, str]:
    return {advice.title: advice.text for advice in advise(given)}


REAL = [0.95, 0.9525, 0.9475]


def test_rising_accuracy_asks_for_more_with_a_command(base: Facts) -> None:
    rising = facts(base, {"real": REAL, "synthetic_1x": [0.80, 0.81, 0.80], "synthetic_3x": [0.90, 0.905, 0.90]})
    (first, *_) = advise(rising)
    assert first.title == "Generate more"
    assert "From 1x to 3x" in first.text
    assert "+9.8 points" in first.text
    assert first.command == (
        "mimeo run spec.yaml --set generate.count=450 --set 'judge.multiples=[1,3,9]' --output ../hostile-more"
    )


def test_amounts_and_mixing_go_by_validation_images_alone(base: Facts) -> None:
    """Test accuracies that rise and validation accuracies that fall; and test accuracies alone."""
    shares = {
        "real": REAL,
        "synthetic_1x": [0.80, 0.81, 0.80],
        "synthetic_3x": [0.90, 0.905, 0.90],
        "mixed_1x": REAL,
        "mixed_3x": [0.99] * 3,
    }
    given = facts(base, shares)
    assert given.judge is not None
    held = {"synthetic_1x": [0.90, 0.905, 0.90], "synthetic_3x": [0.8, 0.805, 0.8], "mixed_3x": [0.9, 0.9025, 0.8975]}
    arms = {key: arm | {"validation": held.get(key, arm["validation"])} for key, arm in given.judge["arms"].items()}
    titles = told(replace(given, judge={**given.judge, "arms": arms}))
    assert {"Use 1x rather than 3x", "Do not add this much: real + synthetic 3x is worse than real alone"} <= set(
        titles
    )
    assert all("no verdict: one generator seed" in text for title, text in titles.items() if title.startswith("Use 1x"))
    bare = {key: arm | {"validation": None} for key, arm in arms.items()}
    (first, *others) = advise(replace(given, judge={**given.judge, "arms": bare}))
    assert first.title == "Hold out validation images before you choose an amount"
    assert first.command is not None
    assert "split.validation=0.2" in first.command
    assert not {"Train on both", "Generate more"} & {one.title for one in others}


def test_flat_accuracy_behind_real_asks_for_a_better_generator(base: Facts) -> None:
    flat = facts(base, {"real": REAL, "synthetic_1x": [0.85, 0.86, 0.84], "synthetic_3x": [0.855, 0.85, 0.85]})
    titles = told(flat)
    assert "Do not expect much from more samples of this generator" in titles
    assert "Train the generator longer" in titles
    outside = replace(
        flat, spec=flat.spec.model_copy(update={"model": flat.spec.model.model_copy(update={"checkpoint": "a/b"})})
    )
    assert "Improve the generator" in told(outside)
    level = facts(base, {"real": REAL, "synthetic_1x": REAL, "synthetic_3x": REAL})
    assert "Train the generator longer" not in told(level)


def test_falling_accuracy_asks_for_less(base: Facts) -> None:
    falling = facts(base, {"real": REAL, "synthetic_1x": [0.90, 0.905, 0.90], "synthetic_3x": [0.80, 0.805, 0.80]})
    assert "Use 1x rather than 3x" in told(falling)


@pytest.mark.parametrize(
    ("mixed", "title"),
    [
        ([0.98, 0.9825, 0.9775], "Train on both"),
        ([0.90, 0.9025, 0.8975], "Do not add this much: real + synthetic 1x is worse than real alone"),
        ([0.95, 0.95, 0.95], "Mixing is a choice, not a gain"),
    ],
)
def test_mixing_follows_the_paired_interval(base: Facts, mixed: list[float], title: str) -> None:
    assert title in told(facts(base, {"real": REAL, "mixed_1x": mixed}))


def test_the_weakest_class_is_named_with_what_it_is_taken_for(base: Facts) -> None:
    weak = [[0.95, 0.95, 0.6, 0.95, 0.95]] * 3
    found = told(facts(base, {"real": REAL, "synthetic_1x": weak}))
    names = base.catalog.class_names
    text = found[f"Look at class “{names[2]}”"]
    assert "gets 60.0 % of it right, real-only 95.0 %" in text
    assert f"taken for “{names[3]}”" in text
    even = told(facts(base, {"real": REAL, "synthetic_1x": REAL}))
    assert not [title for title in even if title.startswith("Look at class")]


def test_more_labels_for_the_class_that_real_data_gets_wrong(base: Facts) -> None:
    found = told(facts(base, {"real": [[0.7, 0.98, 0.98, 0.98, 0.98]] * 3}))
    text = found[f"Label more of class “{base.catalog.class_names[0]}”"]
    assert "70.0 % of it right, over all classes 92.4 %. It has 10 training images." in text


def test_few_seeds_and_a_small_test_set_are_said(base: Facts) -> None:
    assert (
        "3 judge seeds leave 0.6 points"
        in told(facts(base, {"real": REAL}))["Repeat with more seeds before you claim a difference"]
    )
    one = told(facts(base, {"real": [0.95]}))
    assert "One judge seed gives no interval" in one["Repeat with more seeds before you claim a difference"]
    five = told(facts(base, {"real": [0.95, 0.9525, 0.9475, 0.95, 0.95]}))
    assert "Repeat with more seeds before you claim a difference" not in five
    assert "2,000 test images alone leave 1.0 points" in five["Hold out more real images for the test"]


def test_what_was_set_aside_is_told_with_its_commonest_reason(base: Facts) -> None:
    reasons = {
        "quarantined": Counter(low_clip_score=3, constant_image=1),
        "bad_images": Counter(truncated=9, duplicate=2),
    }
    found = told(facts(base, {"real": REAL}, **reasons))
    assert "Given up: 4 of 150 samples" in found["See why samples were quarantined"]
    assert "low_clip_score (3); lower generate.gate.min_clip_score" in found["See why samples were quarantined"]
    assert "Set aside: 11, most often for truncated (9)" in found["Repair or remove bad real images"]


def test_an_unjudged_run_is_sent_to_the_judge(base: Facts) -> None:
    (first, *_) = advise(replace(base, judge=None))
    assert first.command == "mimeo judge spec.yaml --output ."


def test_when_all_is_well_it_says_so(base: Facts) -> None:
    well = facts(base, {"real": [0.5, 0.6, 0.7, 0.6, 0.5]})
    assert list(told(well)) == ["Nothing stands out"]
