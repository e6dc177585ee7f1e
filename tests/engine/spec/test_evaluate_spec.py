"""The evaluate section: faults in one line, paths of its sets beside the recipe, no part of a run's identity."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import spec as specs
from engine.errors import ConfigError
from engine.spec.load import change_paths

RECIPE = """
name: x
source: {kind: digits}
evaluate:
  sets:
    usps: {source: {kind: usps, path: ../usps.mat}}
    mnist: {source: {kind: mnist}, classes: {"1": "1"}, restrict: false}
  corruptions: {kinds: [jpeg], severities: [1, 3]}
  gap: {}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("evaluate.sets.usps.source.pth=3", "evaluate.sets.usps.source.pth; did you mean path?"),
        ("evaluate.sets.usps.sorce=3", "evaluate.sets.usps.sorce; did you mean source?"),
        ("evaluate.sets.usps.source={kind: x}", "evaluate.sets.usps.source.kind is missing or unknown"),
        ("evaluate.sets.test={source: {kind: mnist}}", "the name test is that of the run's own test split"),
        ("evaluate.corruptions.kinds=[fog]", "'gaussian_noise'"),
        ("evaluate.corruptions.severities=[6]", "less than or equal to 5"),
        ("evaluate.arms=[synthetic]", "add real to arms"),
        ("evaluate.gap.folds=1", "greater than or equal to 2"),
    ],
)
def test_faults_are_one_line(recipe: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        specs.load(recipe, [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_of_sets_are_relative_to_the_recipe(recipe: Path) -> None:
    asked = specs.load(recipe).evaluate
    assert asked is not None
    assert asked.sets["usps"].source.path == str(recipe.parent.parent / "usps.mat")
    plain = specs.plain(specs.load(recipe))
    assert change_paths(plain, lambda key, path: "gone")["evaluate"]["sets"]["usps"]["source"]["path"] == "gone"


def test_it_is_no_part_of_the_identity(recipe: Path) -> None:
    spec = specs.load(recipe)
    assert specs.spec_hash(spec) == specs.spec_hash(spec.model_copy(update={"evaluate": None}))
