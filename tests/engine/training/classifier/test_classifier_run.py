"""The classifiers of a recipe on one local Ray: ingest, two arms, a worker killed with -9 in the middle, the same
results after all."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from engine.errors import DataError
from engine.evaluation import classifier_result as classifiers
from engine.images.catalog import Catalog
from engine.images.image_reader import Reader
from engine.spec import RunSpec
from engine.storage.store import Store
from engine.training.classifier import classifier_arms, saved
from engine.training.classifier import classifier_run as training
from engine.training.classifier.augment import Augment
from engine.training.classifier.ingest import Images
from engine.training.classifier.loader import Feed, Loader
from engine.training.judge_data import through_codec
from tests.support.synthetic import Quiet, claimed, digits_spec, noisy_digits, write_shards

pytestmark = pytest.mark.usefixtures("ray_cluster")
TRAIN: dict[str, Any] = {
    "arms": ["real", "augmentation"],
    "multiples": [2],
    "seeds": 1,
    "steps": 160,
    "batch": 32,
    "checkpoint_every": 10,
    "affine": True,
}


def made(folder: Path, **sections: Any) -> tuple[RunSpec, Store, Catalog]:
    spec = digits_spec(split={"validation": 50}, train=TRAIN, **sections)
    store, catalog = claimed(folder, spec)
    pixels, labels = noisy_digits(120)
    write_shards(store, spec, pixels, labels, catalog.class_names, lost=(7,))
    return spec, store, catalog


def killer(store: Store, name: str, done: threading.Event, killed: list[int]) -> None:
    """Kill the training's worker once a checkpoint in its middle is there."""
    while not any(entry.name[-12:-3] >= "000000030" for entry in store.list(f"checkpoints/train/{name}")):
        if done.wait(0.005):
            return
    for process in psutil.Process().children(recursive=True):
        if any("RayTrainWorker" in part for part in process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)
            return


def final(store: Store, planned: training.Plan) -> list[dict[str, Any]]:
    found = training.results(planned, store)
    for result in found:
        result["curve"].pop("seconds")
    return found


def test_a_killed_worker_changes_nothing_and_the_end_is_summed_up(tmp_path: Path) -> None:
    spec, store, catalog = made(tmp_path / "plain")
    planned = training.plan(spec, store, catalog)
    assert [task.arm.key for task in planned.tasks] == ["real", "augmentation_2x"]
    assert training.train(planned, store, Quiet())
    began = time.monotonic()
    assert training.train(planned, store, Quiet())  # nothing to do
    assert time.monotonic() - began < 2

    _, other, _ = made(tmp_path / "killed")
    again = replace(planned, sources=(training.sources.own(spec, other),))
    done, killed = threading.Event(), []
    hunter = threading.Thread(target=killer, args=(other, planned.tasks[0].name, done, killed))
    hunter.start()
    try:
        assert training.train(again, other, Quiet())
    finally:
        done.set()
        hunter.join()
    assert len(killed) == 1
    assert final(other, again) == final(store, planned)

    result = classifiers.summary(planned, store)
    assert json.loads(store.read("results/train.json")) == result
    arm = result["arms"]["augmentation_2x"]
    assert arm["drawn"] == [60, 119]
    assert arm["top1"]["mean"] > 0.5
    assert [entry["arm"] for entry in result["differences"]] == ["augmentation_2x"]
    difference = arm["top1"]["mean"] - result["arms"]["real"]["top1"]["mean"]
    assert result["differences"][0]["difference"] == pytest.approx(difference)
    assert classifiers.table(result).row_count == 2
    assert len(saved.names(store)) == 2


def test_ingest_gives_the_catalogued_and_sealed_pixels_in_order(tmp_path: Path) -> None:
    spec, store, catalog = made(tmp_path / "out", images={"size": 8}, generate={"format": "jpg", "quality": 60})
    planned = training.plan(spec, store, catalog)
    sets = training.read_sets(planned, planned.tasks, Quiet())
    rows = catalog.split("train")
    plain = Reader(spec).pixels(rows)
    everything = {name: images.take(np.arange(len(images))) for name, images in sets.items()}
    np.testing.assert_array_equal(everything["real"], np.stack([through_codec(image, spec) for image in plain]))
    np.testing.assert_array_equal(everything["test"], Reader(spec).pixels(catalog.split("test")))
    assert sets["real"].labels.tolist() == rows["label"].to_pylist()
    pixels, labels = noisy_digits(120)
    kept = np.delete(np.arange(120), 7)
    assert sets["synthetic"].index.tolist() == kept.tolist()
    np.testing.assert_array_equal(sets["synthetic"].labels, labels[kept])
    np.testing.assert_array_equal(
        everything["synthetic"], np.stack([through_codec(image, spec) for image in pixels[kept]])
    )
    some: Images = sets["synthetic"]
    np.testing.assert_array_equal(some.take(np.array([100, 0, 55])), everything["synthetic"][[100, 0, 55]])


def test_processes_that_load_ahead_give_the_same_batches(tmp_path: Path) -> None:
    spec, store, catalog = made(tmp_path / "out")
    planned = training.plan(spec, store, catalog)
    sets = training.read_sets(planned, planned.tasks, Quiet())
    labels = {name: images.labels for name, images in sets.items()}
    parts = classifier_arms.parts(planned.tasks[1].arm, 0, labels, sets["synthetic"].index, 60)
    plan = classifier_arms.mixture(planned.train, parts, labels, 0)
    feed, part = Feed(sets, parts, plan, Augment(planned.train, 8, 0)), slice(0, 32)
    here, away = Loader(feed, part), Loader(feed, part, loaders=2)
    for step in (0, 1, 2, 7):
        for mine, theirs in zip(here.batch(step), away.batch(step), strict=True):
            assert torch.equal(mine, theirs)
    away.close()


def test_a_changed_shard_ends_the_training_in_one_line(tmp_path: Path) -> None:
    spec, store, catalog = made(tmp_path / "out")
    planned = training.plan(spec, store, catalog)
    path = store.local("data/small-000001.tar")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-512] + b"x" * 512)
    with pytest.raises(DataError, match="is not the shard that the manifest lists"):
        training.read_sets(planned, planned.tasks, Quiet())
