"""Cells, sizes and orders of a study by their definitions; what cannot work is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import MimeoError
from engine.spec import load
from engine.spec.recipe import RunSpec
from engine.study.equivalence import equivalence_plan
from engine.study.equivalence.equivalence_plan import Cell

RECIPES = Path(__file__).resolve().parents[4] / "pipelines/recipes"


def recipe(*changes: str) -> RunSpec:
    return load(RECIPES / "equivalence.yaml", changes)


def test_every_repeat_has_each_base_and_a_real_curve() -> None:
    cells = equivalence_plan.cells(recipe("equivalence.generator_seeds=2"))
    assert [cell.key for cell in cells] == [f"{base}-{g}" for g in (0, 1) for base in (400, 200, 100, 50, "real")]
    assert len({cell.name for cell in cells}) == len(cells)
    seeds = [set(equivalence_plan.judge_seeds(recipe(), g)) for g in range(3)]
    assert not seeds[0] & seeds[1]
    assert not seeds[1] & seeds[2]


def test_the_default_curve_holds_the_bases_and_steps_evenly_from_below_them_to_the_pool() -> None:
    sizes = equivalence_plan.sizes(recipe(), 898)
    assert {50, 100, 200, 400, 898} <= set(sizes)
    assert sizes[0] == 20
    ratios = np.array(sizes[1:]) / np.array(sizes[:-1])
    assert ratios.min() > 1.15
    assert ratios.max() < 1.75
    assert equivalence_plan.sizes(recipe("equivalence.real=[30, 900]"), 898) == (30, 50, 100, 200, 400, 900)


@given(counts=st.lists(st.integers(1, 40), min_size=2, max_size=6), seed=st.integers(0, 5))
def test_an_order_is_a_permutation_whose_beginnings_have_the_classes_in_proportion(
    counts: list[int], seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = equivalence_plan.order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    taken = np.cumsum(labels[order][:, None] == np.arange(len(counts)), axis=0)
    places = np.arange(1, len(labels) + 1)[:, None] / len(labels)
    # class c has floor or ceil of its share at each time on its own clock; the clocks of the classes agree within one
    # image each
    assert (np.abs(taken - places * np.array(counts)) <= len(counts) + 1).all()
    assert (order != equivalence_plan.order(labels, seed + 1)).any() or len(labels) < 8


def test_a_cells_recipe_is_trained_on_its_base_under_its_own_seed() -> None:
    spec = equivalence_plan.cell_spec(recipe("seed=7"), Cell(2, 100))
    assert (spec.seed, spec.split.train, spec.generate.count, spec.equivalence) == (9, 100, 2000, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["equivalence.bases=[2000]"], "equivalence.bases: base 2000 needs 2,000 training images, there are 898"),
        (["equivalence.synthetic=real"], "base 50 with 20x further real images needs 1,050 training images"),
        (["equivalence.real=[1000]"], "equivalence.real: 1000 of 898 training images"),
        (["equivalence.bases=[8]"], "have none of class"),
        (["match={mmd: residual, batch: 1}"], "batch 1 is no distribution"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes: list[str], says: str) -> None:
    with pytest.raises(MimeoError) as caught:
        equivalence_plan.check(recipe(*changes))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
