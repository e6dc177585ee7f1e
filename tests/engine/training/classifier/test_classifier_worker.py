"""One classifier without Ray: trained, stopped, resumed, validated, tested once, saved and loaded again; on two workers
as on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.errors import ConfigError, DataError
from engine.storage.store import open_store
from engine.training.classifier import saved
from engine.training.classifier.classifier_arms import Arm
from engine.training.classifier.classifier_worker import CHECKPOINTS, TEST, VALIDATION
from engine.training.classifier.metrics import measure
from tests.support.classifiers import VIT, images, training, worker
from tests.support.matching import run_workers


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results/train/augmentation_1x-0.json").read_text())


def test_a_classifier_is_published_with_what_is_needed_to_use_it_again(tmp_path: Path) -> None:
    assert training(tmp_path, validate_every=4, affine=True, ema=0.9).run()
    store, found = open_store(str(tmp_path)), result(tmp_path)
    assert saved.names(store) == ["augmentation_1x-0"]
    loaded = saved.load(store, "augmentation_1x-0")
    test = images()[TEST]
    pixels = test.take(np.arange(100))
    probabilities = loaded.probabilities(pixels)
    assert measure(probabilities, test.labels) == found["test"]
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    assert loaded.features(pixels).shape == (100, 16)
    assert (loaded.size, loaded.class_names[3]) == (8, "3")
    assert loaded.probabilities(pixels.repeat(2, 1).repeat(2, 2)).shape == (100, 10)  # other sides are resized
    assert found["images"] == {"real": 60, "synthetic": 60}
    assert [step for step, _, _ in found["validation"]["curve"]] == [4, 8, 12]
    tops = [top for _, top, _ in found["validation"]["curve"]]
    assert found["validation"]["best"]["top1"] == max(tops)
    assert found["selected"] == "best"
    assert not list(store.list(CHECKPOINTS))


def test_the_average_is_what_is_kept(tmp_path: Path) -> None:
    made = training(tmp_path, without=(VALIDATION,), ema=0.9)
    assert made.run()
    assert made.stage.ema is not None
    kept = load_file(tmp_path / "classifiers/augmentation_1x-0/last.safetensors")
    own = dict(made.stage.module.named_parameters())
    for (name, parameter), average in zip(own.items(), made.stage.ema.average, strict=True):
        assert torch.equal(kept[name], average.contiguous())
        assert not torch.equal(kept[name], parameter.contiguous())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path: Path, optimizer: str) -> None:
    settings: dict[str, Any] = {
        "optimizer": optimizer,
        "schedule": "milestones",
        "milestones": [6],
        "warmup": 2,
        "mixup": 0.4,
        "flip": True,
        "ema": 0.9,
        "label_smoothing": 0.1,
        "validate_every": 3,
        "lr": 0.01,
    }
    assert training(tmp_path / "whole", **settings).run()
    stops = 0
    while not training(tmp_path / "cut", deadline=0.0, **settings).run():
        stops += 1
        assert not saved.names(open_store(str(tmp_path / "cut")))
    assert stops >= 1
    whole, cut = result(tmp_path / "whole"), result(tmp_path / "cut")
    for found in (whole, cut):
        found["curve"].pop("seconds")
    assert whole == cut
    for which in ("last", "best"):
        name = f"classifiers/augmentation_1x-0/{which}.safetensors"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_two_workers_train_the_same_model_as_one(tmp_path: Path) -> None:
    """Without batch norm the loss of a step is a mean over images, wherever they are."""
    settings = VIT | {"mixup": 0.5, "flip": True, "affine": True}
    for world in (1, 2):
        run_workers(worker, (world, str(tmp_path), settings), world)
    one, two = result(tmp_path / "out-1"), result(tmp_path / "out-2")
    np.testing.assert_allclose(one["curve"]["loss"], two["curve"]["loss"], atol=1e-5)
    assert abs(one["test"]["nll"] - two["test"]["nll"]) < 1e-4
    assert one["test"]["top1"] == two["test"]["top1"]


def test_the_last_weights_are_tested_where_nothing_can_be_validated(tmp_path: Path) -> None:
    assert training(tmp_path, Arm("replacement", multiple=1), without=(VALIDATION,), dtype="bfloat16").run()
    found = json.loads((tmp_path / "results/train/replacement_1x-0.json").read_text())
    assert (found["selected"], found["validation"]) == ("last", None)
    assert not (tmp_path / "classifiers/replacement_1x-0/best.safetensors").exists()
    with pytest.raises(ConfigError, match="float16 needs a CUDA device"):
        training(tmp_path / "half", dtype="float16")


def test_unfinished_and_torn_classifiers_are_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(DataError, match="is missing"):
        saved.load(store, "none")
    assert not training(tmp_path, deadline=0.0, validate_every=1).run()
    assert saved.names(store) == []
    with pytest.raises(DataError, match="not a finished classifier"):
        saved.load(store, "augmentation_1x-0")
    assert training(tmp_path, validate_every=1).run()
    path = tmp_path / "classifiers/augmentation_1x-0/best.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="is not whole"):
        saved.load(store, "augmentation_1x-0")
