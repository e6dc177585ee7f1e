"""A small study that is really run on Ray Tune and Ray Train: resumed cell by cell, extended, refused with other
settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.cluster.progress import PlainReporter
from engine.errors import ConfigError
from engine.images import catalog as catalogs
from engine.shards.verification import verify
from engine.spec import RunSpec, validate
from engine.storage.store import open_store
from engine.study.equivalence import equivalence_run as studies
from engine.study.equivalence.cell import Study, _synthetic, run_cell
from engine.study.equivalence.equivalence_plan import Cell
from engine.training.judge_data import Arrays
from engine.training.judge_fit import Arm, Data, judge_one
from tests.support import outputs
from tests.support.outputs import Output


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Output:
    return outputs.ready(tmp_path_factory.getbasetemp())


def _spec(ready: Output, **asked: Any) -> RunSpec:
    data = ready.spec.model_dump(mode="json")
    data["generate"] |= {"shard_size": 8, "num_inference_steps": 2}
    data["judge"] = {"steps": 6, "width": 8}
    data["equivalence"] = {
        "bases": [12],
        "multiples": [1, 2],
        "real": [12, 20, 40],
        "generator_seeds": 2,
        "judge_seeds": 2,
        "resamples": 100,
        "synthetic": "real",
        **asked,
    }
    return validate(data)


def test_a_study_runs_resumes_and_grows(ready: Output, tmp_path: Path) -> None:
    store, spec = open_store(str(tmp_path)), _spec(ready)
    result = studies.equivalence(spec, ready.catalog, store, PlainReporter())
    names = sorted(entry.name for entry in store.list("results/equivalence/"))
    assert names == [f"results/equivalence/{key}.json" for key in ("12-0", "12-1", "real-0", "real-1")]
    before = {name: store.read(name) for name in names}
    store.remove("results/equivalence/12-1.json")
    studies.equivalence(_spec(ready, generator_seeds=2), ready.catalog, store, PlainReporter())
    assert {name: store.read(name) for name in names} == before  # the lost cell came back the same, the others stayed
    assert json.loads(store.read("results/equivalence.json")) == result
    # synthetic images that are the next real ones: base + k of them are the real set of that size, in the same order
    assert result["cells"]["12-0"].keys() == {"1", "2"}
    with pytest.raises(ConfigError, match="measured with other settings"):
        studies.equivalence(_spec(ready, multiples=[1]), ready.catalog, store, PlainReporter())


def _study(ready: Output, spec: RunSpec, folder: Path) -> Study:
    store = open_store(str(folder))
    catalogs.copy(ready.catalog, ready.store, store)
    rng = np.random.default_rng(0)
    labels = ready.catalog.split("train")["label"].to_numpy().astype(np.int64)
    side = spec.images.size
    images = Arrays(
        rng.integers(256, size=(len(labels), side, side, 3), dtype=np.uint8), labels, np.arange(len(labels))
    )
    return Study(spec, str(folder), ready.catalog, images, images)


def test_further_real_images_make_the_same_classifier_as_the_real_set_of_that_size(
    ready: Output, tmp_path: Path
) -> None:
    spec = _spec(ready, real=[12, 24, 36])
    study = _study(ready, spec, tmp_path)
    real, planted = run_cell(study, Cell(1, 0), "cpu"), run_cell(study, Cell(1, 12), "cpu")
    assert planted["1"] == real["24"]
    assert planted["2"] == real["36"]
    rows = study.order(1)[:24]
    alone = Data(study.take(rows), study.test, None, 24, 10)
    assert real["24"] == [judge_one(Arm("real"), seed, spec.judge, alone).accuracy for seed in (2, 3)]


def test_a_generators_cell_sees_its_base_alone_and_its_set_verifies(ready: Output, tmp_path: Path) -> None:
    spec = _spec(ready, synthetic="generator", multiples=[1])
    study = _study(ready, spec, tmp_path)
    found = run_cell(study, Cell(0, 12), "cpu")
    assert len(found["1"]) == 2
    trial = open_store(str(tmp_path / "trials/seed-0/base-12"))
    assert not verify(trial).faults
    held = catalogs.load(trial).split("train")["key"].to_pylist()
    training = study.catalog.split("train")["key"].to_pylist()
    assert held == [training[row] for row in sorted(study.order(0)[:12])]
    assert catalogs.load(trial).split("test").num_rows == study.catalog.split("test").num_rows


def test_random_labels_keep_the_images(ready: Output, tmp_path: Path) -> None:
    study = _study(ready, _spec(ready, synthetic="random_labels"), tmp_path)
    real = _study(ready, _spec(ready), tmp_path / "real")
    rows = study.order(0)
    found, again, further = (_synthetic(one, Cell(0, 12), rows, "cpu") for one in (study, study, real))
    assert np.array_equal(found.pixels, further.pixels)
    assert np.array_equal(found.labels, again.labels)
    assert (found.labels != further.labels).mean() > 0.5
