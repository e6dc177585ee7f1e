"""A small ablation that is really run: resumed, extended, refused when its arms change; its summary against sums by hand."""

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
from engine.report import ablation as pages
from engine.shards.verify import verify
from engine.spec import RunSpec, spec_hash, validate
from engine.storage.store import open_store
from engine.study import ablation as studies
from engine.study.arms import changed, trials
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
    data["judge"] = {"arms": ["real", "synthetic"], "multiples": [1], "steps": 10, "seeds": 2, "width": 8}
    data["resources"] |= {"labels": {"ray.io/node-id": ray.nodes()[0]["NodeID"]}}  # which every node has
    return validate(data)


def test_an_ablation_runs_resumes_and_grows(ready: Output, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for entry in list(ready.store.list("catalog/")):
        store.create(entry.name, ready.store.read(entry.name))
    two = _spec(ready, {name: ARMS[name] for name in ("base", "lora")})
    reporter = Counting()
    studies.ablation(two, ready.catalog, store, reporter)
    assert reporter.done == [0, 1, 2, 3, 4]  # trials alone: the judges of real images are none
    first = {entry.name: store.read(entry.name) for entry in store.list("results/ablation/")}
    assert len(first) == 5
    store.remove("results/ablation/seed-1-lora.json")
    result = studies.ablation(_spec(ready, ARMS), ready.catalog, store, PlainReporter())
    assert {name: store.read(name) for name in first} == first  # the lost trial's output was there: it scores the same
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
    with pytest.raises(ConfigError, match="another name"):
        studies.ablation(other, ready.catalog, store, PlainReporter())


def test_trials_run_where_the_labels_say(ready: Output, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    spec = _spec(ready, {"lora": {}})
    resources = spec.resources.model_copy(update={"labels": {"mimeo/group": "h100"}})
    with pytest.raises(ClusterError, match="1 workers of one CPU each are asked for, the cluster has 0"):
        studies.ablation(spec.model_copy(update={"resources": resources}), ready.catalog, store, Quiet())
    assert not list(store.list("trials/"))


def test_the_summary_is_that_of_sums_by_hand(ready: Output) -> None:
    spec = _spec(ready, ARMS, seeds=4)
    rng = np.random.default_rng(0)
    plan = trials(spec)
    scores = {t.name: {"scores": {"synthetic_1x": rng.uniform(0.5, 0.9, 2).tolist()}} for t in plan}
    result = studies.summary(spec, scores, [0.9, 0.95])
    means = {
        arm: np.array([np.mean(scores[t.name]["scores"]["synthetic_1x"]) for t in plan if t.arm == arm]) for arm in ARMS
    }
    found = result["training_sets"]["synthetic_1x"]
    for arm, values in means.items():
        assert found["arms"][arm]["values"] == pytest.approx(values.tolist())
    by_arm = {entry["arm"]: entry for entry in found["comparisons"]}
    for arm in ("base", "prior"):
        assert by_arm[arm]["difference"] == pytest.approx((means[arm] - means["lora"]).mean())
        assert by_arm[arm]["p"] == pytest.approx(stats.ttest_rel(means[arm], means["lora"]).pvalue)
    assert result["seeds"] == [0, 1, 2, 3]


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
        trials(spec)
    assert str(caught.value).startswith("ablation.arms.bad: ")
    assert "\n" not in str(caught.value)
