"""The encoder of the training images: its loss by brute force, its views, what it knows, its place in a run and in its
directory."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoModel, ConvNextModel

from engine.conditions import featuremodel
from engine.conditions.features import FeatureExtractor, tower
from engine.diffusion.tiny import tiny_models
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.errors import ConfigError
from engine.spec import RunSpec, validate
from engine.spec.recipe import FeatureSpec
from engine.spec.training import EncoderSpec
from engine.training.judge_model import AUGMENTATIONS
from engine.training.loop import Loop
from engine.training.pretrain.clip import ClipStage
from engine.training.pretrain.encoder import EncoderStage, view
from engine.training.pretrain.pretrain_losses import nt_xent
from engine.training.pretrain.pretrain_stage import Setting, TrainingSet
from engine.training.pretrain.training_features import features
from engine.training.setup import Place
from tests.support.training import CPU, NAMES, digits, tiny_spec, training, weights

SIZES = {"blocks": [8, 16], "steps": 8, "batch": 8}


def spec_of(**encoder: Any) -> RunSpec:
    data = tiny_spec().model_dump(mode="json")
    data["pretrain"]["encoder"] = {**SIZES, **encoder}
    return validate(data)


def test_nt_xent_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    views = [row / math.sqrt(float(row @ row)) for row in (*first, *second)]
    total = 0.0
    for i in range(10):
        partner = (i + 5) % 10
        others = sum(math.exp(float(views[i] @ views[k]) / 0.3) for k in range(10) if k != i)
        total -= math.log(math.exp(float(views[i] @ views[partner]) / 0.3) / others)
    assert nt_xent(first, second, 0.3).item() == pytest.approx(total / 10, rel=1e-9)


def test_nt_xent_of_equal_views_has_a_closed_form() -> None:
    same = torch.ones(4, 6)
    assert nt_xent(same, 3 * same, 0.5).item() == pytest.approx(math.log(7), rel=1e-6)
    apart = torch.eye(4)
    expected = math.log(math.exp(2.0) + 6) - 2.0
    assert nt_xent(apart, apart, 0.5).item() == pytest.approx(expected, rel=1e-6)


def test_a_view_without_crop_and_jitter_is_the_image_and_others_show_part_of_it() -> None:
    ramp = torch.linspace(-0.5, 0.5, 16).expand(200, 3, 16, 16).contiguous()
    whole = view(ramp, EncoderSpec(crop=1, jitter=0), torch.Generator().manual_seed(0))
    seen = (whole.amax(dim=(1, 2, 3)) - whole.amin(dim=(1, 2, 3))).double()
    assert seen.max().item() == pytest.approx(1.0, abs=1e-5)
    assert seen.min().item() > math.sqrt(3 / 4) - 0.1  # an aspect other than 1 cannot show all
    cropped = view(ramp, EncoderSpec(crop=0.25, jitter=0), torch.Generator().manual_seed(0))
    shown = (cropped.amax(dim=(1, 2, 3)) - cropped.amin(dim=(1, 2, 3))).double()
    assert 0.3 < shown.min().item() < 0.55
    assert cropped.amin().item() >= -0.5 - 1e-5
    assert cropped.amax().item() <= 0.5 + 1e-5


def test_jitter_changes_brightness_and_contrast_by_at_most_its_share() -> None:
    grey = torch.zeros(500, 3, 4, 4)  # the middle of [-1, 1]
    lit = view(grey, EncoderSpec(crop=1, jitter=0.4), torch.Generator().manual_seed(1))[:, 0, 0, 0]
    assert -0.4 <= lit.min().item() < -0.35
    assert 0.35 < lit.max().item() <= 0.4
    assert torch.equal(view(grey, EncoderSpec(crop=1, jitter=0), torch.Generator().manual_seed(1)), grey)


def _setting(pixels: np.ndarray, labels: np.ndarray, **pretrain: Any) -> Setting:
    spec = validate({"name": "d", "source": {"kind": "digits"}, "images": {"size": 8}, "pretrain": pretrain})
    prompts = tuple(f"a {NAMES[label]}" for label in labels)
    images = TrainingSet(
        torch.from_numpy(pixels), torch.from_numpy(labels).long(), prompts, tuple(f"a {n}" for n in NAMES), NAMES
    )
    return Setting(spec, Place(0, 1, CPU), images, AUGMENTATIONS[spec.pretrain.augment])


def _train(stage: Any) -> None:
    loop = Loop(stage, Place(0, 1, CPU))
    loop.run(checkpoint_every=10**6, save=lambda: None, out_of_time=lambda: False, tell=lambda step, loss: None)
    stage.module.eval()


def test_its_neighbours_are_of_the_class_more_often_than_clips_and_those_of_pixels() -> None:
    torch.set_num_threads(1)
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))[:800]
    pixels = np.repeat((data.images[order] * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=3)
    labels, cut = data.target[order], 200
    asked = {"clip": {"steps": 60}, "encoder": {"kind": "simclr", "steps": 150, "batch": 64}}
    setting = _setting(pixels[:cut], labels[:cut], **asked)
    clip = ClipStage(setting, train_tokenizer([*setting.images.prompts, *setting.images.class_prompts], 16))
    encoder = EncoderStage(setting)
    _train(clip)
    _train(encoder)

    def accuracy(known: Any) -> float:
        found = [known(part) for part in (pixels[:cut], pixels[cut:])]
        near = KNeighborsClassifier(1, metric="cosine").fit(found[0], labels[:cut])
        return float(near.score(found[1], labels[cut:]))

    def by(model: Any) -> Any:
        return lambda part: features(clip.model, model, normalise(torch.from_numpy(part))).numpy()

    scores = {"clip": accuracy(by(None)), "encoder": accuracy(by(encoder.model))}
    assert scores["encoder"] > scores["clip"] + 0.03
    assert scores["encoder"] > 0.85


@pytest.mark.parametrize("kind", ["simclr", "classifier"])
def test_a_stopped_run_goes_on_to_the_same_weights_and_publishes_a_stock_directory(kind: str, tmp_path: Path) -> None:
    spec = spec_of(kind=kind)
    assert training(tmp_path / "whole", spec).run()["done"]
    while not (out := training(tmp_path / "parts", spec, deadline=time.time()).run())["done"]:
        assert "same command goes on" in out["message"]
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    folder = tmp_path / "whole/model"
    assert isinstance(AutoModel.from_pretrained(folder / "encoder", local_files_only=True), ConvNextModel)
    facts = json.loads((folder / "mimeo.json").read_text())
    assert facts["parameters"]["encoder"] > 0
    assert "encoder/model.safetensors" in facts["files"]
    assert len(json.loads((tmp_path / "whole/results/pretrain.json").read_text())["stages"]["encoder"]["loss"]) == 8


def test_conditions_read_it_in_the_place_of_clip_and_scores_stay_clips(tmp_path: Path) -> None:
    run = training(tmp_path, spec_of())
    assert run.run()["done"]
    found = featuremodel.resolve(FeatureSpec(), tmp_path / "model")
    assert (found.loader, found.dim, found.has_text) == ("encoder", 16, False)
    assert found.scorer is not None
    assert found.scorer.has_text
    pixels = digits().pixels
    with torch.no_grad():
        network = ConvNextModel.from_pretrained(tmp_path / "model/encoder").eval()
        expected = network(pixel_values=normalise(pixels)).pooler_output.numpy()
    np.testing.assert_allclose(FeatureExtractor(found).images(pixels.numpy()), expected, atol=2e-5)
    by_tower = tower(found, "cpu")(pixels.permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(by_tower.detach().numpy(), expected, atol=2e-4)
    scored = {"name": "x", "source": {"kind": "digits"}, "generate": {"gate": {"min_clip_score": 0.1}}}
    featuremodel.check_use(validate(scored), found, [16])
    assert featuremodel.scorer(validate(scored), tmp_path / "model") == found.scorer


def test_the_unet_is_told_its_features(tmp_path: Path) -> None:
    run, seen = training(tmp_path, spec_of()), {}

    class Watched(type(run)):  # type: ignore[misc]
        def _train(self, stage: Any) -> bool:
            seen[stage.name] = stage
            return bool(super()._train(stage))

    Watched(run.job, run.place, run.setting.images).run()
    with torch.no_grad():
        expected = seen["encoder"].model(normalise(run.setting.images.pixels)).pooler_output
    assert torch.allclose(seen["unet"]._cache.tokens[0], expected, atol=1e-5)


def test_a_recipe_without_it_is_the_recipe_of_before() -> None:
    from engine.spec import identity

    assert "encoder" not in identity(tiny_spec())["pretrain"]
    assert identity(spec_of())["pretrain"]["encoder"]["kind"] == "simclr"


def test_an_encoder_that_nothing_would_read_is_one_line() -> None:
    data = spec_of().model_dump(mode="json")
    data["conditions"]["features"] = {"backend": "transformers", "path": "somewhere"}
    with pytest.raises(ConfigError, match=r"backend transformers leaves pretrain.encoder unread") as caught:
        validate(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ({"blocks": [8, 24]}, r"pretrain\.encoder\.blocks: end in features of 24, .* pretrain\.clip\.hidden 16"),
        ({"blocks": [8, 8, 8, 16]}, r"pretrain\.encoder\.blocks: .* 8 px 16 times smaller"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(encoder: dict[str, Any], says: str) -> None:
    spec = spec_of(**encoder)
    with pytest.raises(ConfigError, match=says) as caught:
        tiny_models.check(spec.pretrain, spec.images.size)
    assert "\n" not in str(caught.value)
