"""What is wrong with a search's recipe or output is said by the command in one line, before Ray starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine import spec as specs
from engine.storage.claim import claim
from engine.storage.store import open_store
from engine.study.search import search_plan, search_summary
from engine.study.search.search_plan import Point
from tests.bad_inputs.test_command_line import ROOT, expect, mimeo

RECIPE = ROOT / "pipelines/recipes/search.yaml"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("search.ratios=[1, -1]", ["search.ratios.1", "greater than or equal to 0"]),
        ("split.validation=0", ["split.validation"]),
        ("search.space={generate.guidnce_scale: [1]}", ["did you mean guidance_scale"]),
        ("search.space={generate.strength: [2]}", ["search.space.generate.strength", "got 2"]),
        ("search.space={pretrain.unet.steps: [1]}", ["use keys under generate."]),
    ],
)
def test_bad_searches_are_refused_in_one_line(tmp_path: Path, override: str, says: list[str]) -> None:
    expect(mimeo("search", "search", "--set", override, cwd=tmp_path), 2, *says)
    assert not (tmp_path / "runs/search/spec.yaml").exists()


def test_an_output_of_another_recipe_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    claim(store, specs.load(RECIPE))
    store.create("catalog/catalog.parquet", b"begun")
    changed = mimeo("search", "search", "--set", "judge.steps=5", "-o", "out", cwd=tmp_path)
    expect(changed, 2, "judge.steps")


def test_a_finished_search_has_nothing_to_do(tmp_path: Path) -> None:
    store, spec = open_store(str(tmp_path / "out")), specs.load(RECIPE)
    claim(store, spec)
    seeds = search_plan.seeds(spec)
    points = [Point(ratio) for ratio in search_plan.section(spec).ratios]
    values = {p: {s: 0.7 + 0.01 * k + 0.0001 * k * s[0] for s in seeds} for k, p in enumerate(points)}
    found = search_summary.curve(values, len(seeds), 100)
    best = points[-1]
    facts = {
        "name": "search",
        "training_images": 100,
        "validation_images": 400,
        "generator_seeds": 5,
        "judge_seeds": 3,
        "method": "grid",
        "points": found,
        "chosen": search_summary.choose(found)["key"],
        "beats_zero": True,
        "one_standard_error": search_summary.plainer(found, found[-1])["key"],
        "test": search_summary.reading(best, {p: values[p] for p in (points[0], best)}, 899) | {"of_this_choice": True},
        "covers": search_summary.covers(5, 3, 400),
        "asked": search_plan.section(spec).model_dump(mode="json"),
        "recipe": {},
    }
    store.create(search_plan.RESULT, json.dumps(facts).encode())
    done = mimeo("search", "search", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert "best on validation: 20x, 76.1 %" in done.stdout
    assert "gain +6.1 points" in done.stdout
    assert (tmp_path / "out/results/search.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out/results/search.md").read_text()
    assert page.count("\n| ") == 9  # head, rule and seven ratios
