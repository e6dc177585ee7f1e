"""The whole pretraining through Ray Train: idempotent, resumed, refused for other inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from engine.cluster.progress import PlainReporter
from engine.conditions.table import load_captions
from engine.errors import ConfigError, DataError
from engine.spec import validate
from engine.spec.recipe import ResourcesSpec
from engine.storage.store import open_store
from engine.training.pretrain import pretrain
from engine.training.pretrain.pretrain_run import made_from
from engine.training.pretrain.pretrain_worker import Job, Training, training_set
from engine.training.setup import Place
from tests.support.trained import Trained, trained_run
from tests.support.training import CPU, tiny_spec, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Trained:
    return trained_run(tmp_path_factory.mktemp("trained"))


def test_ray_train_goes_on_from_a_stopped_training_to_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    spec, store = trained.spec, open_store(str(tmp_path))
    for name in ("conditions/captions.parquet", "catalog/catalog.parquet"):
        store.create(name, trained.store.read(name))
    captions = load_captions(store)
    job = Job(spec, store, made_from(spec, trained.catalog, captions), deadline=0.0)
    stopped = Training(job, Place(0, 1, CPU), training_set(spec, trained.catalog.split("train"), captions, CPU)).run()
    assert not stopped["done"]
    assert list(store.list("checkpoints/"))
    assert not store.exists("model/mimeo.json")
    assert pretrain(spec, trained.catalog, store, PlainReporter())["done"]
    assert weights(tmp_path) == weights(trained.model.parent)
    assert not list(store.list("checkpoints/"))


def test_a_finished_run_is_left_alone(trained: Trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.model.rglob("*")}
    again = pretrain(trained.spec, trained.catalog, trained.store, PlainReporter())
    assert again["done"]
    assert "nothing to do" in again["message"]
    assert {path: path.stat().st_mtime_ns for path in trained.model.rglob("*")} == before


def test_the_stock_pipeline_draws_from_it(trained: Trained) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(trained.model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a 3, ", num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


def test_normalised_features_make_another_model_and_their_default_the_same(trained: Trained) -> None:
    captions = load_captions(trained.store)
    data = trained.spec.model_dump()
    data["conditions"]["features"]["normalise"] = True
    before = made_from(trained.spec, trained.catalog, captions)
    assert made_from(validate(data), trained.catalog, captions) == {**before, "normalise": True}
    assert set(before) == {"version", "seed", "catalog", "captions", "prompt", "images", "pretrain"}


def test_a_model_of_other_settings_is_refused(trained: Trained) -> None:
    other = tiny_spec(clip={"steps": 9})
    with pytest.raises(DataError, match="other images or with other settings"):
        pretrain(other, trained.catalog, trained.store, PlainReporter())


def test_workers_that_cannot_share_a_batch_are_refused(trained: Trained, tmp_path: Path) -> None:
    spec = trained.spec.model_copy(update={"resources": ResourcesSpec(device="cpu", train_workers=5)})
    store = open_store(str(tmp_path))
    store.create("conditions/captions.parquet", trained.store.read("conditions/captions.parquet"))
    with pytest.raises(ConfigError, match=r"clip\.batch 12"):
        pretrain(spec, trained.catalog, store, PlainReporter())
