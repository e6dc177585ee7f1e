"""The third stage with a U-Net, trained under the conditioning that sampling uses: text, and image features in it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTokenizer

from engine.diffusion.conditioning import PromptEncoder
from engine.diffusion.families.family import Family
from engine.diffusion.families.sd import StableDiffusion
from engine.diffusion.tiny.tiny_models import build_unet
from engine.training.latent_cache import Cache
from engine.training.pretrain.denoiser import LatentStage, scaled_latents, variants
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.pretrain.training_features import image_features


def build_cache(
    setting: Setting, tokenizer: CLIPTokenizer, clip: Any, vae: Any, looks: Any = None, factor: float | None = None
) -> tuple[Cache, float]:
    """Everything about the training images that the U-Net needs, and the VAE's scaling factor.

    Image features are those of the encoder `looks` where there is one, else those of `clip`. The factor makes the
    standard deviation of the un-augmented latents 1, unless it is given. Under `augment: flip` each image has its
    mirror image beside it.
    """
    images = variants(setting)
    latents, scaling_factor = scaled_latents(images, vae, factor)
    encoder = PromptEncoder(tokenizer, clip.text_model)
    prompts = [*dict.fromkeys(prompt for prompt in setting.images.prompts if prompt), ""]
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    cache = Cache(
        latents=latents,
        tokens=image_features(setting, clip, looks, images),
        told={"states": torch.stack([encoder.encode(prompt) for prompt in prompts])},
        told_rows=torch.tensor([numbers[p] for p in setting.images.prompts], device=latents.device),
        labels=setting.images.labels,
        place=(-1, 0),
    )
    return cache, scaling_factor


class UNetStage(LatentStage):
    """The U-Net's sizes and settings are the recipe's `pretrain.unet`."""

    name = "unet"
    family: Family = StableDiffusion()

    def __init__(self, setting: Setting, cache: Cache, vae: Any = None, factor: float = 1.0) -> None:
        pretrain, size, width = setting.spec.pretrain, setting.spec.images.size, cache.told["states"].shape[-1]
        model = setting.build(self.name, lambda: build_unet(pretrain.unet, pretrain.vae, size, width))
        super().__init__(setting, pretrain.unet, cache, model, pretrain.unet.drop_image)
        self._under_sd(vae, factor)
