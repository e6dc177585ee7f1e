"""The whole pretraining through Ray Train: idempotent, stopped by a time limit, refused for other inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline

from engine.cluster.progress import PlainReporter
from engine.conditions import job as conditions_job
from engine.errors import ConfigError, DataError
from engine.images import catalog as catalogs
from engine.spec.models import ResourcesSpec
from engine.storage.store import open_store
from engine.training.pretrain import pretrain
from tests.support.trained import Trained, trained_run
from tests.support.training import tiny_spec, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Trained:
    return trained_run(tmp_path_factory.mktemp("trained"))


def test_under_ray_train_stopped_and_gone_on_with_gives_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    spec, store = trained.spec, open_store(str(tmp_path))
    catalog = catalogs.build(spec, store, PlainReporter())
    conditions_job.caption(spec, catalog, store, PlainReporter())
    stopped = pretrain(spec, catalog, store, PlainReporter(), time_limit=0.0)
    assert not stopped.done
    assert "same command goes on" in stopped.message
    assert list(store.list("checkpoints/"))
    assert not store.exists("model/mimeo.json")
    assert pretrain(spec, catalog, store, PlainReporter()).done
    assert weights(tmp_path) == weights(trained.model.parent)
    assert not list(store.list("checkpoints/"))


def test_a_finished_run_is_left_alone(trained: Trained) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.model.rglob("*")}
    again = pretrain(trained.spec, trained.catalog, trained.store, PlainReporter())
    assert again.done
    assert "nothing to do" in again.message
    assert {path: path.stat().st_mtime_ns for path in trained.model.rglob("*")} == before


def test_the_stock_pipeline_draws_from_it(trained: Trained) -> None:
    pipeline: Any = StableDiffusionPipeline.from_pretrained(trained.model, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a 3, ", num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


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
