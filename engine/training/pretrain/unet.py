"""The third stage: the U-Net, trained on cached latents under the conditioning that sampling uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CLIPTokenizer

from engine.diffusion.conditioning import PromptEncoder
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.models import TRAIN_TIMESTEPS, build_scheduler, build_unet
from engine.training.pretrain import draws
from engine.training.pretrain.ema import Ema
from engine.training.pretrain.losses import min_snr_weights
from engine.training.pretrain.stage import Setting
from engine.training.pretrain.vae import ENCODE_BATCH, encode

WEIGHT_DECAY = 0.01


class Cache:
    """Everything about the training images that the U-Net needs, computed once.

    `latents` (V, N, C, h, w) of V variants of each image, itself and under `augment: flip` its mirror image, and `tokens`
    (V, N, D), their CLIP features; `texts` (U, L, D) of the distinct prompts, the last of them the empty one; `text_rows` (N,) into them.
    `scaling_factor` makes the standard deviation of the un-augmented latents 1.
    """

    def __init__(self, setting: Setting, tokenizer: CLIPTokenizer, clip: Any, vae: Any) -> None:
        images = normalise(setting.images.pixels)
        variants = [images, images.flip(3)] if setting.spec.pretrain.augment == "flip" else [images]
        latents = torch.stack([encode(vae.eval(), variant) for variant in variants])
        self.scaling_factor = float(1 / latents[0].double().std())
        self.latents = latents * self.scaling_factor
        self.tokens = torch.stack([_features(clip.eval(), variant) for variant in variants])
        encoder = PromptEncoder(tokenizer, clip.text_model)
        prompts = [*dict.fromkeys(prompt for prompt in setting.images.prompts if prompt), ""]
        self.texts = torch.stack([encoder.encode(prompt) for prompt in prompts])
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        self.text_rows = torch.tensor([numbers[p] for p in setting.images.prompts], device=images.device)

    def conditions(
        self, variants: torch.Tensor, rows: torch.Tensor, without: torch.Tensor, without_image: torch.Tensor
    ) -> torch.Tensor:
        """Encoder states (b, L, D): the prompt's, its last token overwritten by the image's feature.

        Rows marked by `without` (b,) bool get the empty prompt and no image, those by `without_image` the bare prompt.
        """
        texts = torch.where(without, len(self.texts) - 1, self.text_rows[rows])
        states = self.texts[texts]
        last = torch.where((without | without_image)[:, None], states[:, -1], self.tokens[variants, rows])
        return torch.cat([states[:, :-1], last[:, None]], dim=1)


class UNetStage:
    """Denoising under SD's schedule: min-SNR weights, dropped conditions, an averaged copy of the weights."""

    name = "unet"

    def __init__(self, setting: Setting, cache: Cache) -> None:
        self._setting, self._spec, self._cache = setting, setting.spec.pretrain.unet, cache
        self.steps, self.lr, self.weight_decay = self._spec.steps, self._spec.lr, WEIGHT_DECAY
        self.clip_norm = self._spec.clip_norm
        pretrain, size, width = setting.spec.pretrain, setting.spec.images.size, cache.texts.shape[-1]
        self.model: Any = setting.build(self.name, lambda: build_unet(self._spec, pretrain.vae, size, width))
        self.module: nn.Module = self.model
        self.ema: Ema | None = Ema(self.model, self._spec.ema)
        self.scheduler: Any = build_scheduler(self._spec)
        self._alphas = self.scheduler.alphas_cumprod.to(setting.place.device)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """Mean over this rank's latents of the min-SNR weighted squared error of noise or velocity."""
        setting, batch, cache = self._setting, self._spec.batch, self._cache
        device, part = setting.place.device, setting.place.part(batch)
        rows = setting.rows(self.name, step, batch)[part]
        generator = draws.generator(setting.seed, self.name, step)
        noise = torch.randn(batch, *cache.latents.shape[2:], generator=generator)[part].to(device)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (batch,), generator=generator)[part].to(device)
        variants = torch.randint(len(cache.latents), (batch,), generator=generator)[part].to(device)
        dropped = torch.rand(2, batch, generator=generator)[:, part].to(device)
        states = cache.conditions(
            variants, rows, dropped[0] < self._spec.drop_condition, dropped[1] < self._spec.drop_image
        )
        latents = cache.latents[variants, rows]
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        aim = noise
        if self._spec.prediction == "v_prediction":
            aim = self.scheduler.get_velocity(latents, noise, timesteps)
        error = (module(noisy, timesteps, states).sample - aim).square().mean(dim=(1, 2, 3))
        return (min_snr_weights(self._alphas, timesteps, self._spec.snr_gamma, self._spec.prediction) * error).mean()


@torch.no_grad()
def _features(clip: Any, images: torch.Tensor) -> torch.Tensor:
    parts = [clip.get_image_features(pixel_values=part).pooler_output for part in images.split(ENCODE_BATCH)]
    return torch.cat(parts)
