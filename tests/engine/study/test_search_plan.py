"""What a ratio search is going to do, by counting: settings, seeds, amounts; and what it refuses, each in one line."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.spec import RunSpec, spec_hash, validate
from engine.statistics.nested import judge_seed
from engine.study.search import rungs, search_plan
from engine.study.search.search_plan import Point

STRENGTH = {"generate.pairing": ["own"], "generate.strength": [0.5, 1]}


def _spec(split: dict[str, Any] | None = None, **search: Any) -> RunSpec:
    sizes = {"train": 30, "validation": 20, "test": 50} | (split or {})
    return validate(
        {"name": "few", "source": {"kind": "digits"}, "images": {"size": 8}, "split": sizes, "search": search}
    )


def test_the_grid_is_the_product_with_values_as_the_recipe_reads_them() -> None:
    spec = _spec(ratios=[2, 0, 1.0, 1], space={"generate.guidance_scale": [4, 1, 1.0]})
    points = search_plan.tried(spec)
    assert [(p.ratio, p.changes()["generate.guidance_scale"]) for p in points] == list(product([1, 2], [1, 4]))
    assert len({point.key for point in points}) == 4
    space = search_plan.space(spec)
    assert [space.point(space.indices(point)) for point in points] == points
    assert points[0].label == "1x, guidance_scale 1.0"


@pytest.mark.parametrize(
    ("ratio", "n", "count"), [(0.29, 100, 29), (0.5, 25, 12), (2.0, 30, 60), (0.1, 30, 3), (0.0, 9, 0)]
)
def test_a_ratio_takes_floor_of_what_is_written(ratio: float, n: int, count: int) -> None:
    assert Point(ratio).count(n) == count


def test_seeds_are_paired_over_settings_and_never_shared_by_generators() -> None:
    spec = _spec(generator_seeds=3, judge_seeds=4)
    assert search_plan.seeds(spec) == tuple(product(range(3), range(4)))
    assert [len(group) for group in search_plan.by_generator(spec)] == [4, 4, 4]
    more = _spec(generator_seeds=4, judge_seeds=9)
    own, further = ({judge_seed(g, j) for g, j in search_plan.seeds(one)} for one in (spec, more))
    assert own < further
    assert len(further) == 36


def test_the_search_is_no_part_of_the_identity_and_its_trials_are_of_their_own() -> None:
    spec = _spec()
    assert spec_hash(spec) == spec_hash(_spec(ratios=[1], judge_seeds=2))
    made = search_plan.set_spec(spec, Point(2.0, (("generate.guidance_scale", 3.0),)), 4, 60)
    assert (made.seed, made.generate.count, made.generate.guidance_scale, made.search) == (spec.seed + 4, 60, 3.0, None)


def test_asha_takes_the_first_of_a_random_order_and_more_trials_go_on_from_there() -> None:
    asked: dict[str, Any] = {"method": "asha", "space": {"generate.guidance_scale": [1, 2, 3]}}
    few, all_ = search_plan.tried(_spec(**asked, trials=4)), search_plan.tried(_spec(**asked))
    assert few == all_[:4]
    assert sorted(p.key for p in all_) == sorted(p.key for p in search_plan.tried(_spec(space=asked["space"])))


@pytest.mark.parametrize(("count", "cuts"), [(4, [2, 2]), (5, [2, 2, 1]), (15, [4, 4, 7]), (40, [10, 10, 20])])
def test_stretches_end_at_the_rungs(count: int, cuts: list[int]) -> None:
    seeds = tuple((0, k) for k in range(count))
    found = rungs.stretches(seeds)
    assert [len(stretch) for stretch in found] == cuts
    assert sum(found, ()) == seeds


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ({"ratios": [1, -0.5]}, "ratios.1 must be greater than or equal to 0"),
        ({"ratios": [0]}, "nothing but 0"),
        ({"ratios": []}, "ratios"),
        ({"space": {"generate.guidance_scale": []}}, "guidance_scale"),
        ({"space": {"match.rank": [1]}}, "use keys under generate. and model.lora_scale"),
        ({"space": {"generate.count": [1]}}, "what all trials share"),
        ({"space": {"generate.gate": [{"min_std": 1}]}}, "numbers or words"),
        ({"method": "grid", "trials": 3}, "leave trials out"),
        ({"method": "asha", "judge_seeds": 3}, "4 or more"),
    ],
)
def test_bad_sections_are_refused_when_the_recipe_is_read(search: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        _spec(**search)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("split", "search", "says"),
    [
        ({"validation": 0}, {}, "validation"),
        ({}, {"space": {"generate.guidnce_scale": [1]}}, "did you mean guidance_scale"),
        ({}, {"space": {"generate.guidance_scale": [1, -2]}}, "got -2"),
        (
            {},
            {"space": {"generate.pairing": ["own", "none"], "generate.strength": [0.5]}},
            "pairing none, strength 0.5",
        ),
        ({}, {"space": {"model.lora_scale": [1]}}, "there is no LoRA"),
        ({}, {"ratios": [0.01]}, "less than one image"),
    ],
)
def test_bad_settings_are_refused_before_ray(split: dict[str, Any], search: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        search_plan.check(_spec(split, **search))
    assert "\n" not in str(caught.value)


def test_a_strength_may_be_searched_beside_its_pairing() -> None:
    search_plan.check(_spec(space=STRENGTH))
