"""A small study that is really run: equal budgets, a common first round, resumed; its summary against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from engine.errors import ConfigError
from engine.shards.verify import verify
from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from engine.study.deliberate import run as studies
from engine.study.deliberate.choice import entropy_weights
from engine.study.deliberate.trial import Study, _weights, name_of, run_seed, settings
from engine.study.trial import Shared
from engine.training.judge import Arm, Data, fit
from engine.training.judge_data import Arrays
from engine.training.judge_model import probabilities
from tests.support import outputs
from tests.support.outputs import Output


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


def _spec(ready: Output, **asked: object) -> RunSpec:
    data = ready.spec.model_dump(mode="json")
    data["generate"] |= {"count": 22, "shard_size": 8, "num_inference_steps": 2}
    data["judge"] = {"steps": 10, "seeds": 2, "width": 8}
    data["deliberate"] = {"rounds": 3, "seeds": 2, "hard_guidance": 1.0, **asked}
    return validate(data)


def _study(ready: Output, spec: RunSpec, folder: Path) -> Study:
    store = open_store(str(folder))
    for entry in list(ready.store.list("catalog/")):
        store.create(entry.name, ready.store.read(entry.name))
    rng = np.random.default_rng(0)
    labels = ready.catalog.split("train")["label"].to_numpy().astype(np.int64)

    def images(labels: np.ndarray) -> Arrays:
        side = spec.images.size
        pixels = rng.integers(256, size=(len(labels), side, side, 3), dtype=np.uint8)
        return Arrays(pixels, labels, np.arange(len(labels)))

    return Study(spec, Shared(str(folder), ready.catalog, images(labels), images(labels[:30])), images(labels[:20]))


def test_arms_draw_as_many_images_from_a_common_first_round_and_resume(ready: Output, tmp_path: Path) -> None:
    spec = _spec(ready)
    study = _study(ready, spec, tmp_path)
    run_seed(study, 0, "cpu")
    store = open_store(str(tmp_path))
    facts = {arm: json.loads(store.read(name_of(0, arm))) for arm in ("static", "entropy", "class_error")}
    assert facts["static"]["rounds"] == []
    for arm in ("entropy", "class_error"):
        assert [entry["images"] for entry in facts[arm]["rounds"]] == [7, 7]  # 22 = 8 + 7 + 7
        for number in (1, 2):
            sets = [
                open_store(str(tmp_path / f"trials/seed-0/{arm}-round-{number}-{part}")) for part in ("hard", "easy")
            ]
            assert all(not verify(one).faults for one in sets)
            plans = [json.loads(one.read("plan.json")) for one in sets]
            assert sum(plan["count"] for plan in plans) == 7
    assert all(len(own["scores"][kind]) == 2 for own in facts.values() for kind in ("synthetic", "mixed"))
    before = store.read(name_of(0, "static"))
    store.remove(name_of(0, "entropy"))
    run_seed(study, 0, "cpu")
    assert json.loads(store.read(name_of(0, "entropy"))) == facts["entropy"]
    assert store.read(name_of(0, "static")) == before


def test_rounds_mix_as_the_judge_does(ready: Output, tmp_path: Path) -> None:
    """The classifiers that choose the anchors are those of the judge's mixed arm: its fit on the same images is the oracle."""
    found = {}
    for mixing in ("equal", "proportional"):
        data = _spec(ready).model_dump(mode="json")
        data["judge"] |= {"mixing": mixing}
        spec = validate(data)
        study = _study(ready, spec, tmp_path / mixing)
        train = study.shared.train
        drawn = Arrays(train.pixels[:10], train.labels[:10], train.index[:10])
        classes = len(ready.catalog.class_names)
        arms = Data(train, study.shared.test, drawn, len(drawn.labels), classes)
        models = [fit(Arm("mixed", 1), seed, spec.judge, arms)[0] for seed in range(2)]
        expected = entropy_weights(np.stack([probabilities(m, train.part().pixels) for m in models]))
        found[mixing] = _weights(study, spec, "entropy", drawn, "cpu")
        np.testing.assert_array_equal(found[mixing], expected)
        assert settings(spec).get("mixing", "equal") == mixing
    assert not np.array_equal(found["equal"], found["proportional"])


def test_the_summary_is_that_of_sums_by_hand(ready: Output) -> None:
    spec = _spec(ready, seeds=4, by=["entropy"])
    rng = np.random.default_rng(0)
    found = {
        (seed, arm): {
            "scores": {kind: rng.uniform(0.5, 0.9, 2).tolist() for kind in ("synthetic", "mixed")},
            "rounds": [],
        }
        for seed in range(4)
        for arm in ("static", "entropy")
    }
    result = studies.summary(spec, found)
    for kind in ("synthetic", "mixed"):
        static, own = (
            np.array([np.mean(found[seed, arm]["scores"][kind]) for seed in range(4)]) for arm in ("static", "entropy")
        )
        (entry,) = result["training_sets"][kind]["comparisons"]
        assert entry["difference"] == pytest.approx((own - static).mean())
        assert entry["p"] == pytest.approx(stats.ttest_rel(own, static).pvalue)


def test_what_cannot_work_is_refused_before_ray_starts(ready: Output) -> None:
    with pytest.raises(ConfigError, match=r"split\.validation: is empty"):
        studies.check(validate(_spec(ready).model_dump(mode="json") | {"split": {"train": 40, "test": 40}}))
    with pytest.raises(ConfigError, match="cannot be drawn in 30 rounds"):
        studies.check(_spec(ready, rounds=30, by=["entropy"]))
