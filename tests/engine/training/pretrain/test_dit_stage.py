"""A DiT trained from scratch: told classes and the null class, published as a directory that diffusers and the engine
open."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import DiTPipeline
from torch import nn

from engine.conditions import featuremodel
from engine.conditions.table import Captions
from engine.diffusion import classes, families
from engine.diffusion.checkpoint import inspect, load
from engine.diffusion.sampler import Request, Sampler
from engine.diffusion.tiny import tiny_models
from engine.errors import ConfigError
from engine.spec import RunSpec, validate
from engine.spec.recipe import FeatureSpec, GenerateSpec, ModelSpec
from engine.training.judge_model import AUGMENTATIONS
from engine.training.pretrain import pretrain_run
from engine.training.pretrain.dit_stage import DitStage, build_cache
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.pretrain.vae import VaeStage
from engine.training.setup import Place
from tests.support.training import CPU, NAMES, digits, tiny_spec, training, weights

SIZES = {"hidden": 16, "heads": 2, "layers": 2, "patch": 1, "steps": 8, "batch": 8}


def dit_spec(**dit: Any) -> RunSpec:
    data = tiny_spec().model_dump(mode="json")
    data["pretrain"] |= {"denoiser": "dit", "dit": {**SIZES, **dit}}
    data["generate"]["visual_token"] = "none"
    return validate(data)


def stage_of(spec: RunSpec) -> DitStage:
    images = digits(10)
    setting = Setting(spec, Place(0, 1, CPU), images, AUGMENTATIONS[spec.pretrain.augment])
    cache, _ = build_cache(setting, None, None, VaeStage(setting).model.eval())  # type: ignore[arg-type]
    return DitStage(setting, cache)


class Listener(nn.Module):
    """Predicts zeros and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[torch.Tensor] = []
        self.times: list[torch.Tensor] = []

    def forward(self, noisy: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> Any:
        self.labels.append(class_labels)
        self.times.append(timestep)
        return type("Output", (), {"sample": torch.zeros_like(noisy)})


def test_it_is_told_the_classes_of_its_images_and_the_null_class_as_often_as_asked() -> None:
    stage, heard = stage_of(dit_spec(drop_condition=0.25, batch=500)), Listener()
    losses = [stage.loss(heard, step).item() for step in range(6)]
    labels = torch.cat(heard.labels)
    assert (labels == 1000).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert set(labels.tolist()) == {*range(10), 1000}
    mean_weight = stage.process.weights(torch.cat(heard.times), 5.0).mean().item()  # noise has a mean square of 1
    assert np.mean(losses) == pytest.approx(mean_weight, rel=0.03)


def test_it_begins_at_zero_and_learns() -> None:
    stage = stage_of(dit_spec(batch=32))
    before = torch.get_rng_state()
    optimiser = torch.optim.Adam(stage.module.parameters(), 1e-2)
    losses = []
    for step in range(40):
        optimiser.zero_grad()
        loss = stage.loss(stage.module.train(), step)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(stage.loss(Listener(), 0).item())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    assert training(folder, dit_spec()).run()["done"]
    return folder


def test_what_is_published_opens_in_diffusers_and_draws_the_same_here(trained: Path) -> None:
    stock = DiTPipeline.from_pretrained(trained / "model")
    stock.set_progress_bar_config(disable=True)
    checkpoint = inspect(ModelSpec(checkpoint=str(trained / "model")), 8)
    assert (checkpoint.family, checkpoint.classes, checkpoint.places) == ("DiTPipeline", 1000, {})
    assert checkpoint.class_labels == dict(enumerate(NAMES))
    assert classes.numbers(checkpoint, NAMES[::-1], ModelSpec()) == tuple(range(10))[::-1]
    assert stock.get_label_ids([NAMES[3]]) == [3]
    images = stock(
        [3, 7], 2.0, [torch.Generator().manual_seed(n) for n in (1, 2)], num_inference_steps=4, output_type="np"
    ).images
    settings = GenerateSpec(scheduler="ddim", num_inference_steps=4, guidance_scale=2.0, visual_token="none")
    drawn = Sampler(load(checkpoint, "cpu", "float32"), settings).draw(
        [Request("", 1, label=3), Request("", 2, label=7)]
    )
    found = np.stack([image.pixels for image in drawn]).astype(int)  # type: ignore[misc]
    assert np.abs(found - (images * 255).round().astype(int)).max() <= 1
    facts = json.loads((trained / "model/mimeo.json").read_text())
    assert facts["parameters"]["dit"] == sum(p.numel() for p in stock.transformer.parameters())


def test_its_clip_gives_features_and_scores(trained: Path) -> None:
    model = featuremodel.resolve(FeatureSpec(), trained / "model")
    assert (model.dim, model.has_text) == (16, True)


def test_a_run_stopped_by_the_time_limit_goes_on_to_the_same_weights(tmp_path: Path, trained: Path) -> None:
    while not training(tmp_path, dit_spec(), deadline=time.time()).run()["done"]:
        assert len(list((tmp_path / "checkpoints").iterdir())) < 30
    assert weights(tmp_path) == weights(trained)


def test_the_settings_of_the_denoiser_that_is_not_used_change_nothing() -> None:
    def made(spec: RunSpec) -> dict[str, Any]:
        catalog: Any = type("Catalog", (), {"digest": "x"})
        captions: Any = type("Captions", (), {"keys": (), "captions": (), "class_names": ()})
        return pretrain_run.made_from(spec, catalog, captions)["pretrain"]

    assert set(made(tiny_spec())) == {"clip", "vae", "unet", "text_length", "augment"}
    assert set(made(dit_spec())) == {"clip", "vae", "denoiser", "dit", "text_length", "augment"}


@pytest.mark.parametrize(
    ("dit", "message"),
    [
        ({"hidden": 18, "heads": 4}, r"pretrain\.dit\.hidden: 18 is not a multiple of dit\.heads 4"),
        ({"hidden": 18, "heads": 2}, r"pretrain\.dit\.hidden: 18 is not a multiple of 4"),
        ({"patch": 3}, r"pretrain\.dit\.patch: 3 does not divide latents of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(dit: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_models.check(dit_spec(**dit).pretrain, 8)


def test_more_classes_than_the_stock_pipeline_can_count_are_refused() -> None:
    names = tuple(map(str, range(1001)))
    captions = Captions(("a",), np.zeros(1, np.int32), ("",), names, {})
    with pytest.raises(ConfigError, match="dit knows 1000 classes, the training images have 1001; set it to unet"):
        pretrain_run._check(dit_spec(), pa.table({"key": ["a"]}), captions)


def test_a_dropped_class_of_the_trained_network_is_the_null_class(trained: Path) -> None:
    pipeline = load(inspect(ModelSpec(checkpoint=str(trained / "model")), 8), "cpu", "float32")
    family = families.of(pipeline)
    assert family.encoder(pipeline).encode("")["labels"].item() == 1000
