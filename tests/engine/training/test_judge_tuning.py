"""The choice of learning rate and length against brute force, on images that take a while to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConfigError
from engine.seeds import derive
from engine.spec import load, spec_hash
from engine.spec.recipe import JudgeSpec
from engine.storage.store import open_store
from engine.training.judge_data import Arrays
from engine.training.judge_fit import Arm, Data, judge_one
from engine.training.judge_tuning import tuned, tuned_once

ROOT = Path(__file__).resolve().parents[3]


def _arrays(seed: int, count: int) -> Arrays:
    """Three classes of noisy patterns."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    patterns = np.random.default_rng(0).integers(256, size=(3, 8, 8, 3))
    pixels = np.clip(patterns[labels] + rng.normal(size=(count, 8, 8, 3)) * 60, 0, 255).astype(np.uint8)
    return Arrays(pixels, labels.astype(np.int64), np.arange(count))


DATA = Data(_arrays(1, 40), _arrays(2, 50), None, 40, 3, validation=_arrays(3, 200))
SLOW = JudgeSpec(steps=12, lr=3e-4, width=4, batch=16, seeds=2, augment="none", tune=True)


def test_the_best_of_the_grid_on_validation_images_is_chosen_and_the_test_images_have_no_say(tmp_path: Path) -> None:
    held = Data(DATA.train, _arrays(3, 200), None, 40, 3)
    found = {}
    for steps in (12, 24):
        for lr in (3e-4, 9e-4):
            spec = SLOW.model_copy(update={"steps": steps, "lr": lr})
            runs = [judge_one(Arm("real"), derive(7, "tune", k), spec, held).accuracy for k in range(2)]
            found[steps, lr] = np.mean(runs)
    best = max(found.values())
    chosen = tuned(Arm("real"), 7, SLOW, DATA)
    key = next(pair for pair in found if pair == (chosen.steps, pytest.approx(chosen.lr)))
    assert found[key] == best
    assert found[key] > found[12, 3e-4]
    swapped = Data(DATA.train, _arrays(9, 20), None, 40, 3, validation=DATA.validation)
    assert tuned(Arm("real"), 7, SLOW, swapped) == chosen
    store = open_store(str(tmp_path))
    assert tuned_once(store, "tuned.json", Arm("real"), 7, SLOW, DATA) == chosen
    assert tuned_once(store, "tuned.json", Arm("real"), 8, SLOW, DATA) == chosen  # what is published holds


def test_without_tuning_nothing_is_trained_or_published(tmp_path: Path) -> None:
    plain = SLOW.model_copy(update={"tune": False})
    store = open_store(str(tmp_path))
    assert tuned_once(store, "tuned.json", Arm("real"), 7, plain, DATA) is plain
    assert not store.exists("tuned.json")


def test_tuning_needs_validation_images_and_leaves_older_hashes_alone() -> None:
    with pytest.raises(ConfigError, match=r"judge\.tune chooses on validation images: set split\.validation") as caught:
        load(ROOT / "pipelines/recipes/quickstart.yaml", ["judge.tune=true", "split.validation=0"])
    assert "\n" not in str(caught.value)
    recipe = ROOT / "pipelines/recipes/search.yaml"
    assert spec_hash(load(recipe, ["judge.tune=false"])) == spec_hash(load(recipe))
    assert spec_hash(load(recipe, ["judge.tune=true"])) != spec_hash(load(recipe))
