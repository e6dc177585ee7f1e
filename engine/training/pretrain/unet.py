"""The third stage with a U-Net, trained under the conditioning that sampling uses: text, and image features in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from engine.diffusion.conditioning import PromptEncoder
from engine.diffusion.families.base import Family
from engine.diffusion.families.sd import StableDiffusion
from engine.diffusion.tiny.models import build_unet
from engine.training.cache import Cache
from engine.training.pretrain.denoiser import DenoiserStage, scaled_latents, variants
from engine.training.pretrain.encoder import features
from engine.training.pretrain.stage import Setting


def build_cache(
    setting: Setting, tokenizer: CLIPTokenizer, clip: Any, vae: Any, looks: Any | None = None
) -> tuple[Cache, float]:
    """Everything about the training images that the U-Net needs, and the VAE's scaling factor.

    Image features are those of the encoder `looks` where there is one, else those of `clip`.

    The factor makes the standard deviation of the un-augmented latents 1. Under `augment: flip` each image has its mirror image
    beside it.
    """
    images = variants(setting)
    latents, scaling_factor = scaled_latents(images, vae)
    encoder = PromptEncoder(tokenizer, clip.text_model)
    prompts = [*dict.fromkeys(prompt for prompt in setting.images.prompts if prompt), ""]
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    tokens = torch.stack([features(clip, looks, variant) for variant in images])
    cache = Cache(
        latents=latents,
        tokens=nn.functional.normalize(tokens, dim=-1) if setting.spec.conditions.features.normalise else tokens,
        told={"states": torch.stack([encoder.encode(prompt) for prompt in prompts])},
        told_rows=torch.tensor([numbers[p] for p in setting.images.prompts], device=latents.device),
        labels=setting.images.labels,
        place=(-1, 0),
    )
    return cache, scaling_factor


class UNetStage(DenoiserStage):
    """The U-Net's sizes and settings are the recipe's `pretrain.unet`."""

    name = "unet"
    family: Family = StableDiffusion()

    def __init__(self, setting: Setting, cache: Cache) -> None:
        pretrain, size, width = setting.spec.pretrain, setting.spec.images.size, cache.told["states"].shape[-1]
        model = setting.build(self.name, lambda: build_unet(pretrain.unet, pretrain.vae, size, width))
        super().__init__(setting, pretrain.unet, cache, model, pretrain.unet.drop_image)
