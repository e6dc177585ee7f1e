"""The third stage, whatever the denoiser: cached latents under the conditions that sampling uses, and the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.diffusion.families.base import Family
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.models import build_scheduler
from engine.spec.training import DitSpec, UNetSpec
from engine.training import draws
from engine.training.cache import Cache
from engine.training.ema import Ema
from engine.training.pretrain.stage import Setting
from engine.training.pretrain.vae import encode
from engine.training.schedule import one_cycle

WEIGHT_DECAY = 0.01


def variants(setting: Setting) -> list[torch.Tensor]:
    """The training images (N, 3, H, W), and under `augment: flip` their mirror images."""
    images = normalise(setting.images.pixels)
    return [images, images.flip(3)] if setting.spec.pretrain.augment == "flip" else [images]


def scaled_latents(images: list[torch.Tensor], vae: Any) -> tuple[torch.Tensor, float]:
    """Latents (V, N, C, h, w) and the scaling factor that makes the standard deviation of the first variant's 1."""
    latents = torch.stack([encode(vae.eval(), variant) for variant in images])
    scaling_factor = float(1 / latents[0].double().std())
    return latents * scaling_factor, scaling_factor


class DenoiserStage:
    """Denoising under SD's schedule: min-SNR weights, dropped conditions, an averaged copy of the weights."""

    name: str
    accumulate = 1
    family: Family

    def __init__(self, setting: Setting, spec: UNetSpec | DitSpec, cache: Cache, model: Any, drop_image: float) -> None:
        self._setting, self._spec, self._cache, self._drop_image = setting, spec, cache, drop_image
        self.steps, self.weight_decay = spec.steps, WEIGHT_DECAY
        self.clip_norm = spec.clip_norm
        self.kept: dict[str, torch.Tensor] = {}
        self.model: Any = model
        self.module: nn.Module = model
        self.ema: Ema | None = Ema(model.parameters(), spec.ema)
        self.scheduler: Any = build_scheduler(spec)
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
        chosen = torch.randint(cache.variants, (batch,), generator=generator)[part].to(device)
        dropped = torch.rand(2, batch, generator=generator)[:, part].to(device)
        told = cache.condition(chosen, rows, dropped[0] < self._spec.drop_condition, dropped[1] < self._drop_image)
        latents = cache.draw(chosen, rows)
        noisy, aim = self.process.noisy(latents, noise, times), self.process.aim(latents, noise, times)
        error = (self.family.predict(module, noisy, times, told) - aim).square().mean(dim=(1, 2, 3))
        return (self.process.weights(times, self._spec.snr_gamma) * error).mean()
