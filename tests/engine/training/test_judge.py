"""The judge's Ray Train run: arms, pairing, resume, and that its results do not depend on how it was run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import ConfigError, DataError
from engine.images import catalog
from engine.images.catalog import Catalog
from engine.spec import RunSpec
from engine.spec.recipe import JudgeSpec
from engine.storage.store import Store, open_store
from engine.training.judge_data import Arrays, codec, real_images, resolution, shrink, synthetic_images, through_codec
from engine.training.judge_fit import Arm, Data, Outcome, arms, judge_one
from engine.training.judge_training import check, outcome_name, outcomes
from tests.support.synthetic import Quiet, QuietTask, claimed, digits_spec, noisy_digits, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
LOST = (3, 70)
STEPS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[RunSpec, Store]:
    """A finished output of 120 samples, two of them quarantined."""
    spec = digits_spec(judge={"multiples": [1, 2], "seeds": 2, "steps": STEPS})
    store, made = claimed(tmp_path_factory.mktemp("run"), spec)
    write_shards(store, spec, *noisy_digits(120), made.class_names, lost=LOST)
    return spec, store


def load(store: Store) -> Catalog:
    return catalog.load(store)


def learnt(found: list[Outcome]) -> list[dict[str, Any]]:
    """Outcomes less what the clock says."""
    return [{**vars(o), "seconds": 0} for o in found]


def test_arms_follow_the_spec() -> None:
    spec = JudgeSpec(arms=("mixed", "real", "synthetic"), multiples=(10, 1, 10))
    assert [a.key for a in arms(spec)] == ["real", "synthetic_1x", "synthetic_10x", "mixed_1x", "mixed_10x"]
    assert [a.key for a in arms(JudgeSpec(arms=("synthetic",), multiples=(2,)))] == ["synthetic_2x"]


def test_more_than_was_generated_is_refused_before_training() -> None:
    spec = digits_spec(judge={"multiples": [1, 3]})
    with pytest.raises(ConfigError, match=r"3 x 60 training images are 180 samples, generate.count is 120"):
        check(spec, train=60, test=200)
    check(digits_spec(judge={"multiples": [1, 3], "arms": ["real"]}), train=60, test=200)
    check(spec, train=40, test=200)


def test_no_test_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a test split"):
        check(digits_spec(), train=60, test=0)


def test_every_outcome_is_published_paired_and_resumed(run: tuple[RunSpec, Store]) -> None:
    spec, store = run
    found = outcomes(spec, load(store), store, reporter := Quiet())
    assert [(o.arm, o.seed) for o in found] == [
        (arm, seed) for arm in ("real", "synthetic_1x", "synthetic_2x", "mixed_1x", "mixed_2x") for seed in (0, 1)
    ]
    sizes = {o.arm: (o.real_images, o.synthetic_images) for o in found}
    assert sizes == {
        "real": (60, 0),
        "synthetic_1x": (0, 59),
        "synthetic_2x": (0, 118),
        "mixed_1x": (60, 59),
        "mixed_2x": (60, 118),
    }
    for outcome in found:
        assert sum(outcome.correct) == round(outcome.accuracy * 200)
        assert sum(outcome.correct) + sum(count for *_, count in outcome.confusions) == 200
        assert all(true != predicted for true, predicted, _ in outcome.confusions)
    steps = [task.done for name, task in reporter.tasks.items() if name.startswith("judge") and "images" not in name]
    assert sum(steps) == 10 * STEPS

    removed = outcome_name("mixed_1x", 1)
    before = {entry.name: store.read(entry.name) for entry in store.list("results/judge/")}
    store.remove(removed)
    assert learnt(outcomes(spec, load(store), store, Quiet())) == learnt(found)
    after = {entry.name: store.read(entry.name) for entry in store.list("results/judge/")}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {removed}


def test_ray_and_a_plain_call_agree_bit_for_bit(run: tuple[RunSpec, Store]) -> None:
    spec, store = run
    there = {(o.arm, o.seed): o for o in outcomes(spec, load(store), store, Quiet())}
    loaded, task = load(store), QuietTask(0)
    train = real_images(spec, loaded.split("train"), task, same_codec=True)
    test = real_images(spec, loaded.split("test"), task, same_codec=False)
    synthetic = synthetic_images(spec, store, 120, task)
    for arm in (Arm("real"), Arm("mixed", 2)):
        here = judge_one(arm, 1, spec.judge, Data(train, test, synthetic, n=60, classes=10))
        assert learnt([here]) == learnt([there[arm.key, 1]])


def test_synthetic_images_are_those_of_the_plan(run: tuple[RunSpec, Store]) -> None:
    spec, store = run
    pixels, labels = noisy_digits(120)
    found = synthetic_images(spec, store, 75, task := QuietTask(75))
    kept = [index for index in range(75) if index not in LOST]
    assert found.index.tolist() == kept
    assert np.array_equal(found.pixels, pixels[kept])
    assert np.array_equal(found.labels, labels[kept])
    assert task.done == 73
    assert found.below(60).index.tolist() == [index for index in range(60) if index != 3]


def test_a_changed_shard_is_refused(run: tuple[RunSpec, Store], tmp_path: Path) -> None:
    spec, store = run
    shutil.copytree(store.url, tmp_path / "run")
    path = tmp_path / "run" / "data" / "small-000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="not the shard that the manifest lists"):
        synthetic_images(spec, open_store(tmp_path / "run"), 120, QuietTask(0))


def test_real_images_take_the_lossy_codec_of_the_synthetic_ones(run: tuple[RunSpec, Store]) -> None:
    _, store = run
    rows = load(store).split("train").slice(0, 5)
    png, jpg = digits_spec(), digits_spec(generate={"format": "jpg", "quality": 60})
    plain = real_images(png, rows, QuietTask(0), same_codec=True)
    coded = real_images(jpg, rows, QuietTask(0), same_codec=True)
    test = real_images(jpg, rows, QuietTask(0), same_codec=False)
    assert np.array_equal(test.pixels, plain.pixels)
    assert not np.array_equal(coded.pixels, plain.pixels)
    assert np.array_equal(coded.pixels, np.stack([through_codec(image, jpg) for image in plain.pixels]))
    assert codec(jpg) == {"format": "jpg", "quality": 60, "lossy": True}
    assert codec(png)["lossy"] is False


def test_large_images_are_averaged_down() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    expected = pixels.reshape(2, 64, 4, 64, 4, 3).mean(axis=(2, 4))
    assert np.abs(shrink(pixels, 64) - expected).max() <= 0.5
    assert shrink(pixels, 256) is pixels
    assert resolution(digits_spec(images={"size": 512})) == 64
    assert resolution(digits_spec()) == 8


def test_a_diverging_judge_names_the_learning_rate() -> None:
    pixels, labels = noisy_digits(40)
    images = Arrays(pixels, labels, np.arange(40))
    spec = JudgeSpec(lr=1e30, steps=20)
    with pytest.raises(ConfigError, match=r"judge.lr.*real with seed 0 diverged"):
        judge_one(Arm("real"), 0, spec, Data(images, images, None, n=40, classes=10))


def test_outcomes_are_plain_json(run: tuple[RunSpec, Store]) -> None:
    spec, store = run
    outcomes(spec, load(store), store, Quiet())
    data = json.loads(store.read("results/judge/real-0.json"))
    assert data["arm"] == "real"
    assert data["parameters"] > 1000
