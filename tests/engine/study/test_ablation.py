"""A small ablation that is really run: resumed, extended, refused when its arms change; its summary against sums by
hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from scipy import stats

from engine.cluster.progress import PlainReporter, Task
from engine.errors import ClusterError, ConfigError
from engine.images import catalog as catalogs
from engine.report import ablation_page as pages
from engine.shards.verification import verify
from engine.spec import RunSpec, spec_hash, validate
from engine.statistics.population import pooled
from engine.storage import readings
from engine.storage.store import open_store
from engine.study import ablation_run as studies
from engine.study.ablation_arms import changed, check, every_arm
from engine.study.judge_reading import packed, unpacked
from engine.study.trial import generator_key
from tests.support import outputs
from tests.support.matching import MATCH
from tests.support.outputs import Output
from tests.support.synthetic import Quiet

ARMS: dict[str, dict[str, Any]] = {
    "base": {"match": None},
    "lora": {},
    "prior": {"generate.pairing": "own", "generate.strength": 0.5},
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


class Counting(PlainReporter):
    """Keeps what the task "ablation" says of how far it is."""

    def __init__(self) -> None:
        super().__init__(io.StringIO())
        self.done: list[int] = []

    def task(self, name: str, total: int, unit: str = "images") -> Task:
        class Kept(Task):
            def _show(task, fields: dict[str, float | int | str]) -> None:
                self.done.append(task.done)

        return Kept(name, total, unit) if name == "ablation" else super().task(name, total, unit)


def _spec(ready: Output, arms: dict[str, dict[str, Any]], seeds: int = 2) -> RunSpec:
    data = ready.spec.model_dump(mode="json")
    data |= {"match": MATCH | {"steps": 2}, "ablation": {"seeds": seeds, "arms": arms}}
    data["split"] = {"train": 20, "validation": 30, "test": 25}
    data["generate"] |= {"count": 20}
    data["judge"] = {"arms": ["real", "synthetic"], "multiples": [1], "steps": 10, "seeds": 2, "width": 8}
    data["resources"] |= {"labels": {"ray.io/node-id": ray.nodes()[0]["NodeID"]}}  # which every node has
    return validate(data)


def test_an_ablation_runs_resumes_grows_and_reads_the_test_split_once(ready: Output, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    two = _spec(ready, {name: ARMS[name] for name in ("base", "lora")})
    catalog = catalogs.build(two, store, Quiet())
    reporter = Counting()
    begun = studies.ablation(two, catalog, store, reporter)
    assert reporter.done == [0, 1, 2, 3, 4, 5, 6]  # the judges of real images are trials too
    first = {entry.name: store.read(entry.name) for entry in store.list("results/ablation/")}
    final = [name for name in first if name.startswith("results/ablation/test/")]
    assert len(final) == (4 if begun["chosen"] == "lora" else 6)  # two seeds of the reference, the choice, real judges
    assert all("-100" in name for name in final)  # fresh generators
    assert len(first) == 6 + len(final) + 2  # choice.json and test.json
    (noted,) = readings.readings(store)
    assert noted["images"] == 25
    assert set(noted["arms"]) == {"lora", "real", begun["chosen"]}
    one = json.loads(first["results/ablation/validation/seed-0-lora.json"])
    right = np.stack([unpacked(text, 30) for text in one["right"]["synthetic_1x"]])
    assert right.mean(1).tolist() == pytest.approx(one["scores"]["synthetic_1x"])
    store.remove("results/ablation/validation/seed-1-lora.json")
    result = studies.ablation(_spec(ready, ARMS), catalog, store, PlainReporter())
    assert {name: store.read(name) for name in first} == first  # the lost trial's output was there: it scores the same
    assert {k: v for k, v in result["test"].items() if k != "of_this_choice"} == {
        k: v for k, v in begun["test"].items() if k != "of_this_choice"
    }
    assert result["test"]["of_this_choice"] == (result["chosen"] == begun["chosen"])
    assert readings.readings(store) == [noted]
    found = result["training_sets"]["synthetic_1x"]
    assert set(found["arms"]) == set(ARMS)
    assert [entry["arm"] for entry in found["comparisons"]] == ["base", "prior"]
    assert all(len(arm["values"]) == 2 for arm in found["arms"].values())
    trial = open_store(str(tmp_path / "trials/seed-1/lora"))
    assert not verify(trial).faults
    assert trial.exists("match/mimeo.json")
    assert not open_store(str(tmp_path / "trials/seed-1/base")).exists("match/mimeo.json")
    assert json.loads(store.read("results/ablation.json")) == result
    text = pages.markdown(result)
    assert all(arm in text for arm in ARMS)
    other = _spec(ready, ARMS | {"lora": {"match.rank": 3}})
    with pytest.raises(ConfigError, match="other settings"):
        studies.ablation(other, catalog, store, PlainReporter())


def test_trials_run_where_the_labels_say(ready: Output, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    spec = _spec(ready, {"lora": {}})
    resources = spec.resources.model_copy(update={"labels": {"mimeo/group": "h100"}})
    catalog = catalogs.build(spec, store, Quiet())
    with pytest.raises(ClusterError, match="1 workers of one CPU each are asked for, the cluster has 0"):
        studies.ablation(spec.model_copy(update={"resources": resources}), catalog, store, Quiet())
    assert not list(store.list("trials/"))


def test_the_summary_is_that_of_sums_by_hand(ready: Output) -> None:
    spec = _spec(ready, ARMS, seeds=4)
    rng = np.random.default_rng(0)
    plan = every_arm(spec)
    right = {(t.seed, t.arm): rng.random((2, 30)) < rng.uniform(0.5, 0.9) for t in plan}
    scores = {
        key: {
            "scores": {"synthetic_1x": own.mean(1).tolist()},
            "right": {"synthetic_1x": [packed(one) for one in own]},
            "images": 30,
        }
        for key, own in right.items()
    }
    result = studies.summary(spec, scores, {seed: [0.9, 0.95] for seed in range(4)})
    means = {arm: np.array([right[seed, arm].mean() for seed in range(4)]) for arm in ARMS}
    found = result["training_sets"]["synthetic_1x"]
    for arm, values in means.items():
        assert found["arms"][arm]["values"] == pytest.approx(values.tolist())
    by_arm = {entry["arm"]: entry for entry in found["comparisons"]}
    for arm in ("base", "prior"):
        assert by_arm[arm]["difference"] == pytest.approx((means[arm] - means["lora"]).mean())
        interval = stats.ttest_rel(means[arm], means["lora"]).confidence_interval(0.95)
        assert by_arm[arm]["interval"] == pytest.approx(list(interval))
        images = np.stack([right[seed, arm].mean(0) - right[seed, "lora"].mean(0) for seed in range(4)])
        expected = pooled(images)
        assert expected is not None
        assert by_arm[arm]["p"] == expected.p
    assert result["seeds"] == [0, 1, 2, 3]
    assert result["chosen"] == max(means, key=lambda arm: means[arm].mean())


def test_without_validation_images_it_is_refused_in_one_line(ready: Output) -> None:
    data = _spec(ready, ARMS).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"^split\.validation: is 0, .*; set it") as caught:
        check(validate(data | {"split": {"train": 40, "validation": 0, "test": 50}}))
    assert "\n" not in str(caught.value)


def test_arms_change_what_they_say_and_nothing_else(ready: Output) -> None:
    spec = _spec(ready, ARMS)
    assert changed(spec, {}, 3).model_dump() == spec.model_dump() | {"seed": 3, "ablation": None}
    assert changed(spec, {"match": None}, 0).match is None
    assert changed(spec, {"judge.steps": 7}, 0).judge.steps == 7
    assert spec_hash(changed(spec, {}, 0)) == spec_hash(spec)
    keys = {generator_key(changed(spec, changes, 0)) for changes in ARMS.values()}
    assert len(keys) == 1
    assert generator_key(changed(spec, {"pretrain.unet.steps": 3}, 0)) not in keys


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"match.mdd": "none"}, "did you mean mmd"),
        ({"seed.x": 1}, "seed is no section"),
        ({"match.batch": 1, "match.mmd": "residual"}, "at least 2 images"),
    ],
)
def test_bad_arms_are_refused_in_one_line(ready: Output, changes: dict[str, Any], says: str) -> None:
    spec = _spec(ready, {"lora": {}, "bad": changes})
    with pytest.raises(ConfigError, match=says) as caught:
        every_arm(spec)
    assert str(caught.value).startswith("ablation.arms.bad: ")
    assert "\n" not in str(caught.value)
