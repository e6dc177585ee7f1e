"""The last stage, whatever the denoiser: cached latents or images under the conditions that sampling uses, and the
loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from engine.diffusion.families.family import Family
from engine.diffusion.process import Process
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tiny_models import build_scheduler
from engine.seeds import derive
from engine.spec.training import DitSpec, PixelSpec, UNetSpec
from engine.training import draws
from engine.training.ema import Ema
from engine.training.latent_cache import Cache
from engine.training.powerema import PowerEma
from engine.training.pretrain import heldout
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.pretrain.vae import encode
from engine.training.pretrain.views import Labelled
from engine.training.schedule import one_cycle
from engine.training.trainingresults import HeldOutCurve

WEIGHT_DECAY = 0.01
LENGTH = 0.1  # of the average where no image is held out


def variants(setting: Setting) -> list[torch.Tensor]:
    """The training images (N, 3, H, W), and under `augment: flip` their mirror images."""
    images = normalise(setting.images.pixels)
    return [images, images.flip(3)] if setting.spec.pretrain.augment == "flip" else [images]


def scaled_latents(images: list[torch.Tensor], vae: Any, factor: float | None) -> tuple[torch.Tensor, float]:
    """Latents (V, N, C, h, w), and the scaling factor: that given, or what makes the first variant's standard deviation
    1."""
    latents = torch.stack([encode(vae.eval(), variant) for variant in images])
    scaling_factor = float(1 / latents[0].double().std()) if factor is None else factor
    return latents * scaling_factor, scaling_factor


class DenoiserStage:
    """Denoising with weighted errors, dropped conditions, views with their labels, and an averaged copy of the
    weights."""

    name: str
    accumulate = 1
    family: Family
    process: Process
    scheduler: Any

    def __init__(
        self, setting: Setting, spec: UNetSpec | DitSpec | PixelSpec, cache: Cache, model: Any, drop_image: float
    ) -> None:
        self._setting, self._spec, self._cache, self._drop_image = setting, spec, cache, drop_image
        self.steps, self.clip_norm = spec.steps, spec.clip_norm
        self.weight_decay = spec.weight_decay if isinstance(spec, PixelSpec) else WEIGHT_DECAY
        self.model: Any = model
        views = setting.views
        self.module: nn.Module = model if views is None else Labelled(model).to(setting.place.device)
        self.ema: Any
        if isinstance(spec, PixelSpec) or setting.held is not None:
            length = spec.ema if isinstance(spec, PixelSpec) else LENGTH
            self.ema = PowerEma(self.module.parameters(), spec.steps, length)
        else:
            self.ema = Ema(self.module.parameters(), spec.ema)
        self.kept: dict[str, torch.Tensor] = getattr(self.ema, "kept", {})

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return one_cycle(step, self.steps, self._spec.lr)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """Mean over this rank's images of the weighted squared error of what the network predicts."""
        setting, batch, cache = self._setting, self._spec.batch, self._cache
        device, part = setting.place.device, setting.place.part(batch)
        whole = setting.rows(self.name, step, batch)
        rows = whole[part]
        generator = draws.generator(setting.seed, self.name, step)
        noise = torch.randn(batch, *cache.latent_shape, generator=generator)[part].to(device)
        times = self.process.times(batch, generator)[part].to(device)
        chosen = torch.randint(cache.variants, (batch,), generator=generator)[part].to(device)
        dropped = torch.rand(2, batch, generator=generator)[:, part].to(device)
        told = cache.condition(chosen, rows, dropped[0] < self._spec.drop_condition, dropped[1] < self._drop_image)
        if setting.views is None:
            denoiser: Callable[..., Any] = module
            latents = cache.draw(chosen, rows)
        else:
            images, labels = setting.views.draw(normalise(setting.images.pixels[whole]), generator)
            denoiser = partial(module, labels[part])
            latents = self.latents(images[part])
        with self._dropout_of(step):
            return self._error(denoiser, latents, noise, times, told).mean()

    @contextmanager
    def _dropout_of(self, step: int) -> Iterator[None]:
        """What dropout draws belongs to the step (and to the worker), so that a resumed run repeats an unbroken one."""
        if not getattr(self._spec, "dropout", 0.0):
            yield
            return
        place = self._setting.place
        with torch.random.fork_rng(devices=[place.device] if place.device.type == "cuda" else []):
            torch.manual_seed(derive(self._setting.seed, self.name, "dropout", step, place.rank))
            yield

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """What the denoiser takes for images (b, 3, H, W)."""
        raise NotImplementedError

    def _error(
        self, denoiser: Any, latents: torch.Tensor, noise: torch.Tensor, times: torch.Tensor, told: Any
    ) -> torch.Tensor:
        """(b,)."""
        noisy, aim = self.process.noisy(latents, noise, times), self.process.aim(latents, noise, times)
        half = getattr(self._spec, "dtype", "float32") == "bfloat16"
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=half):
            predicted = self.family.predict(denoiser, noisy, times, told)
        error = (predicted.float() - aim).square().mean(dim=(1, 2, 3))
        return self.process.weights(times, getattr(self._spec, "snr_gamma", 0.0)) * error

    @torch.no_grad()
    def error_on(self, cache: Cache) -> float:
        """Mean loss of the model as it is on the images of a cache, un-augmented, under fixed noise and spread noise
        levels."""
        count = len(cache.labels)
        pairs = heldout.Pairs(count, cache.latent_shape, self.process, self._setting.seed)
        total, device = 0.0, cache.latents.device
        for rows, noise, times in pairs:
            rows, none = rows.to(device), torch.zeros(len(rows), dtype=torch.bool, device=device)
            latents = cache.draw(torch.zeros_like(rows), rows)
            told = cache.condition(torch.zeros_like(rows), rows, none, none)
            error = self._error(self.model, latents, noise.to(device), times.to(device), told)
            total += float(error.sum())
        return total / pairs.count

    def finish(self, held: Cache | None) -> HeldOutCurve | None:
        """Put the result into the module: the average, which held-out images choose where there are any; gives their
        curves."""
        self.module.eval()
        if not isinstance(self.ema, PowerEma) or held is None:
            self.ema.copy_to(self.module.parameters())
            return None
        seen, unseen = (partial(self.error_on, cache) for cache in (self._cache, held))
        found = heldout.choose(self.ema, self.module.parameters, seen, unseen)
        self.ema.copy_to(self.module.parameters())
        return found


class LatentStage(DenoiserStage):
    """In a VAE's latents, under SD's schedule."""

    def _under_sd(self, vae: Any, factor: float) -> None:
        """`vae` encodes views, which are scaled by `factor`; it is used only where there are any."""
        assert not isinstance(self._spec, PixelSpec)
        self._vae, self._factor = vae, factor
        self.scheduler = build_scheduler(self._spec)
        self.process = self.family.process(self.scheduler.config, self._setting.place.device)

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """The VAE's, scaled."""
        return encode(self._vae, images) * self._factor
