"""The U-Net is told in training what it is told in sampling, and its loss is the weighted error of what it predicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine.diffusion.conditioning import PromptEncoder
from engine.diffusion.families.family import tell
from engine.diffusion.families.sd import SdEncoder
from engine.diffusion.process import Diffusion
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.spec.recipe import ConditionsSpec
from engine.training.judge_model import AUGMENTATIONS
from engine.training.latent_cache import Cache
from engine.training.pretrain.clip import ClipStage
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.pretrain.unet import UNetStage, build_cache
from engine.training.pretrain.vae import VaeStage
from engine.training.setup import Place
from tests.support.training import CPU, digits, tiny_spec


def _parts(**pretrain: Any) -> tuple[Setting, Any, Any, Any]:
    spec = tiny_spec(**pretrain)
    images = digits(10)
    setting = Setting(spec, Place(0, 1, CPU), images, AUGMENTATIONS[spec.pretrain.augment])
    tokenizer = train_tokenizer([*images.prompts, *images.class_prompts], spec.pretrain.text_length)
    return setting, tokenizer, ClipStage(setting, tokenizer).model.eval(), VaeStage(setting).model.eval()


def test_conditions_equal_those_of_sampling() -> None:
    setting, tokenizer, clip, vae = _parts()
    cache, _ = build_cache(setting, tokenizer, clip, vae)
    rows = torch.tensor([3, 0, 7, 7])
    without = torch.tensor([False, True, False, True])
    without_image = torch.tensor([False, False, True, True])
    got = cache.condition(torch.zeros(4, dtype=torch.int64), rows, without, without_image)
    with torch.no_grad():
        pixels = normalise(setting.images.pixels[rows])
        tokens = clip.get_image_features(pixel_values=pixels).pooler_output.numpy()
    prompts = [setting.images.prompts[row] for row in rows.tolist()]
    encoder = SdEncoder(PromptEncoder(tokenizer, clip.text_model))
    asked, seen = [prompts[0], "", prompts[2], ""], [np.asarray(tokens[0]), None, None, None]
    expected = tell(encoder, asked, [None] * 4, seen)
    assert torch.allclose(got["states"], expected["states"], atol=1e-5)
    assert np.linalg.norm(tokens[0]) != pytest.approx(1.0, abs=1e-3)


def test_scaled_latents_have_unit_standard_deviation() -> None:
    setting, tokenizer, clip, vae = _parts()
    cache, factor = build_cache(setting, tokenizer, clip, vae)
    assert cache.latents[0].std().item() == pytest.approx(1.0, rel=1e-5)
    with torch.no_grad():
        mean = vae.encode(normalise(setting.images.pixels[:1])).latent_dist.mean
    assert torch.allclose(cache.latents[0, :1], mean * factor, atol=1e-5)


def test_flips_are_variants_with_features_of_their_own() -> None:
    setting, tokenizer, clip, vae = _parts(augment="flip")
    cache, _ = build_cache(setting, tokenizer, clip, vae)
    assert cache.latents.shape[:2] == (2, 10)
    with torch.no_grad():
        mirrored = normalise(setting.images.pixels).flip(3)
        features = clip.get_image_features(pixel_values=mirrored).pooler_output
    assert torch.allclose(cache.tokens[1], features, atol=1e-5)
    assert not torch.allclose(cache.tokens[0], cache.tokens[1], atol=1e-3)


def test_normalised_features_have_length_one() -> None:
    setting, tokenizer, clip, vae = _parts()
    spec = setting.spec.model_copy(
        update={"conditions": ConditionsSpec.model_validate({"features": {"normalise": True}})}
    )
    plain, _ = build_cache(setting, tokenizer, clip, vae)
    made, _ = build_cache(replace(setting, spec=spec), tokenizer, clip, vae)
    lengths = plain.tokens.norm(dim=-1, keepdim=True)
    assert torch.allclose(made.tokens, plain.tokens / lengths, atol=1e-6)
    assert (lengths - 1).abs().min() > 1e-3


class _Oracle(nn.Module):
    """Knows the clean latents: predicts the true noise or velocity plus a constant error."""

    def __init__(self, stage: UNetStage, cache: Cache, error: float, prediction: str) -> None:
        super().__init__()
        self.alphas, self.cache, self.error, self.prediction = stage.scheduler.alphas_cumprod, cache, error, prediction
        self.timesteps = torch.empty(0)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        a = self.alphas[timesteps][:, None, None, None]
        clean = self._nearest(noisy, a)
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        self.timesteps = timesteps
        aim = noise if self.prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean
        return type("Output", (), {"sample": aim + self.error})

    def _nearest(self, noisy: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """The training latent whose implied noise is most like a standard normal draw: its variance is nearest to 1."""
        every = self.cache.latents[0]
        implied = (noisy[:, None] - a.sqrt()[:, None] * every[None]) / (1 - a).sqrt()[:, None]
        return every[implied.square().mean(dim=(2, 3, 4)).argmin(1)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_the_min_snr_weighted_error(prediction: str) -> None:
    setting, tokenizer, clip, vae = _parts(unet={"prediction": prediction, "batch": 16}, augment="none")
    cache, _ = build_cache(setting, tokenizer, clip, vae)
    latents = torch.randn(1, 10, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 200
    cache = replace(cache, latents=latents)
    stage = UNetStage(setting, cache)
    oracle = _Oracle(stage, cache, 0.3, prediction)
    loss = stage.loss(oracle, 4)
    weights = Diffusion(stage.scheduler.alphas_cumprod, prediction).weights(oracle.timesteps, 5.0)
    assert loss.item() == pytest.approx((weights * 0.09).mean().item(), rel=1e-2)
    assert stage.loss(_Oracle(stage, cache, 0.0, prediction), 4).item() == pytest.approx(0.0, abs=1e-4)


def test_conditions_are_dropped_as_often_as_asked() -> None:
    setting, tokenizer, clip, vae = _parts(unet={"drop_condition": 0.25, "drop_image": 0.5, "batch": 500})
    cache, _ = build_cache(setting, tokenizer, clip, vae)
    stage = UNetStage(setting, cache)
    seen: list[torch.Tensor] = []

    class Listener(nn.Module):
        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
            seen.append(encoder_hidden_states)
            return type("Output", (), {"sample": noisy})

    for step in range(6):
        stage.loss(Listener(), step)
    states = torch.cat(seen)
    empty = (states == cache.told["states"][-1]).flatten(1).all(1)
    bare = (states[:, None, -1] == cache.told["states"][None, :, -1]).all(2).any(1) & ~empty
    assert empty.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert bare.double().mean().item() == pytest.approx(0.75 * 0.5, abs=0.03)
