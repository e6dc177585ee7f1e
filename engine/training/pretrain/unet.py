"""The third stage: the U-Net, trained on cached latents under the conditioning that sampling uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from engine.diffusion.conditioning import PromptEncoder
from engine.diffusion.families.sd import StableDiffusion
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.models import build_scheduler, build_unet
from engine.training import draws
from engine.training.cache import Cache
from engine.training.ema import Ema
from engine.training.pretrain.stage import Setting
from engine.training.pretrain.vae import ENCODE_BATCH, encode
from engine.training.schedule import one_cycle

WEIGHT_DECAY = 0.01


def build_cache(setting: Setting, tokenizer: CLIPTokenizer, clip: Any, vae: Any) -> tuple[Cache, float]:
    """Everything about the training images that the U-Net needs, and the VAE's scaling factor.

    The factor makes the standard deviation of the un-augmented latents 1. Under `augment: flip` each image has its mirror image
    beside it.
    """
    images = normalise(setting.images.pixels)
    variants = [images, images.flip(3)] if setting.spec.pretrain.augment == "flip" else [images]
    latents = torch.stack([encode(vae.eval(), variant) for variant in variants])
    scaling_factor = float(1 / latents[0].double().std())
    encoder = PromptEncoder(tokenizer, clip.text_model)
    prompts = [*dict.fromkeys(prompt for prompt in setting.images.prompts if prompt), ""]
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    tokens = torch.stack([_features(clip.eval(), variant) for variant in variants])
    cache = Cache(
        latents=latents * scaling_factor,
        tokens=nn.functional.normalize(tokens, dim=-1) if setting.spec.conditions.features.normalise else tokens,
        told={"states": torch.stack([encoder.encode(prompt) for prompt in prompts])},
        told_rows=torch.tensor([numbers[p] for p in setting.images.prompts], device=images.device),
        labels=setting.images.labels,
        place=(-1, 0),
    )
    return cache, scaling_factor


class UNetStage:
    """Denoising under SD's schedule: min-SNR weights, dropped conditions, an averaged copy of the weights."""

    name = "unet"
    accumulate = 1
    family = StableDiffusion()

    def __init__(self, setting: Setting, cache: Cache) -> None:
        self._setting, self._spec, self._cache = setting, setting.spec.pretrain.unet, cache
        self.kept: dict[str, torch.Tensor] = {}
        self.steps, self.weight_decay = self._spec.steps, WEIGHT_DECAY
        self.clip_norm = self._spec.clip_norm
        pretrain, size, width = setting.spec.pretrain, setting.spec.images.size, cache.told["states"].shape[-1]
        self.model: Any = setting.build(self.name, lambda: build_unet(self._spec, pretrain.vae, size, width))
        self.module: nn.Module = self.model
        self.ema: Ema | None = Ema(self.model.parameters(), self._spec.ema)
        self.scheduler: Any = build_scheduler(self._spec)
        self.process = self.family.process(self.scheduler.config, setting.place.device)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return one_cycle(step, self.steps, self._spec.lr)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """Mean over this rank's latents of the min-SNR weighted squared error of noise or velocity."""
        setting, batch, cache = self._setting, self._spec.batch, self._cache
        device, part = setting.place.device, setting.place.part(batch)
        rows = setting.rows(self.name, step, batch)[part]
        generator = draws.generator(setting.seed, self.name, step)
        noise = torch.randn(batch, *cache.latent_shape, generator=generator)[part].to(device)
        times = self.process.times(batch, generator)[part].to(device)
        variants = torch.randint(cache.variants, (batch,), generator=generator)[part].to(device)
        dropped = torch.rand(2, batch, generator=generator)[:, part].to(device)
        told = cache.condition(
            variants, rows, dropped[0] < self._spec.drop_condition, dropped[1] < self._spec.drop_image
        )
        latents = cache.draw(variants, rows)
        noisy, aim = self.process.noisy(latents, noise, times), self.process.aim(latents, noise, times)
        error = (self.family.predict(module, noisy, times, told) - aim).square().mean(dim=(1, 2, 3))
        return (self.process.weights(times, self._spec.snr_gamma) * error).mean()


@torch.no_grad()
def _features(clip: Any, images: torch.Tensor) -> torch.Tensor:
    parts = [clip.get_image_features(pixel_values=part).pooler_output for part in images.split(ENCODE_BATCH)]
    return torch.cat(parts)
