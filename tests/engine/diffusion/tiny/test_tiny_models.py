"""Sizes of the closed-set models, and the refusal of those that do not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.diffusion.tiny import tiny_models
from engine.diffusion.tiny.tokenizer import train_tokenizer
from engine.errors import ConfigError
from engine.spec.recipe import GenerateSpec
from engine.spec.training import PretrainSpec

DIGITS = PretrainSpec.model_validate(
    {"clip": {"hidden": 32}, "vae": {"blocks": [8, 16]}, "unet": {"blocks": [16, 32], "head_dim": 8}}
)
CIFAR = PretrainSpec.model_validate(
    {
        "text_length": 20,
        "clip": {"hidden": 48, "heads": 3, "patch": 4},
        "vae": {"blocks": [8, 16, 16], "latent_channels": 3},
        "unet": {"blocks": [16, 32, 48], "layers": 2, "head_dim": 16},
    }
)


@pytest.mark.parametrize(("spec", "size", "side"), [(DIGITS, 8, 4), (CIFAR, 32, 8)])
def test_the_parts_fit_one_another(spec: PretrainSpec, size: int, side: int) -> None:
    tiny_models.check(spec, size)
    tokenizer = train_tokenizer(["photo of one"], spec.text_length)
    clip = tiny_models.build_clip(spec.clip, tokenizer, size)
    vae = tiny_models.build_vae(spec.vae, size)
    unet: Any = tiny_models.build_unet(spec.unet, spec.vae, size, spec.clip.hidden)
    images = torch.zeros(2, 3, size, size)
    features = clip.get_image_features(pixel_values=images).pooler_output
    ids = tokenizer(["photo of one", ""], padding="max_length", return_tensors="pt")["input_ids"]
    states = clip.text_model(ids)[0]
    assert features.shape == (2, spec.clip.hidden)
    assert states.shape == (2, spec.text_length, features.shape[1])
    latents = vae.encode(images).latent_dist.mean
    assert latents.shape == (2, spec.vae.latent_channels, side, side)
    assert unet.config.sample_size == side == tiny_models.latent_size(spec.vae, size)
    assert unet(latents, torch.tensor([0, 999]), states).sample.shape == latents.shape
    assert vae.decode(latents).sample.shape == images.shape


def test_attention_heads_are_as_wide_as_asked() -> None:
    unet: Any = tiny_models.build_unet(CIFAR.unet, CIFAR.vae, 32, CIFAR.clip.hidden)
    heads = {m.to_q.out_features // m.heads for m in unet.modules() if hasattr(m, "to_q")}
    assert heads == {16}


def test_the_schedule_is_that_of_stable_diffusion() -> None:
    scheduler: Any = tiny_models.build_scheduler(CIFAR.unet)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    expected = (1 - betas).cumprod(0)
    assert torch.allclose(scheduler.alphas_cumprod.double(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "size", "key"),
    [
        ({"clip": {"hidden": 30}}, 8, "pretrain.clip.hidden"),
        ({"clip": {"patch": 3}}, 8, "pretrain.clip.patch"),
        ({"vae": {"blocks": [12, 24]}}, 8, "pretrain.vae.blocks"),
        ({"vae": {"blocks": [8, 8, 8, 8, 8]}}, 8, "pretrain.vae.blocks"),
        ({"unet": {"blocks": [32, 32, 32, 32]}}, 8, "pretrain.unet.blocks"),
        ({"unet": {"blocks": [40, 80]}}, 8, "pretrain.unet.blocks"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_key(change: dict[str, Any], size: int, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_models.check(PretrainSpec.model_validate(change), size)
    assert caught.value.where == key


@pytest.mark.parametrize(
    ("denoiser", "generate", "message"),
    [
        ("unet", {"scheduler": "lcm", "num_inference_steps": 51}, "lcm cannot run 51 steps"),
        ("dit", {"scheduler": "tcd", "num_inference_steps": 51}, "tcd cannot run 51 steps"),
        ("dit", {"visual_token": "none", "cache_interval": 2}, "generate.cache_interval"),
    ],
)
def test_what_the_generator_could_not_draw_is_refused_before_it_is_trained(
    denoiser: str, generate: dict[str, Any], message: str
) -> None:
    spec = PretrainSpec.model_validate(DIGITS.model_dump() | {"denoiser": denoiser})
    tiny_models.check_generate(spec, GenerateSpec(visual_token="none"))
    with pytest.raises(ConfigError, match=message):
        tiny_models.check_generate(spec, GenerateSpec(**{"visual_token": "none"} | generate))
