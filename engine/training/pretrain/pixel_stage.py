"""The last stage with a U-Net in pixels, under EDM or flow matching: told the class of an image and, if asked for, its
feature."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import CLIPTokenizer

from engine.diffusion.families.family import Family
from engine.diffusion.families.pixel import Pixel, PixelFlow
from engine.diffusion.families.pixelpipeline import join
from engine.diffusion.process import Edm, Flow
from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.pixelmodels import build_projection, build_scheduler, build_unet
from engine.training.latent_cache import Cache
from engine.training.pretrain.denoiser import DenoiserStage
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.pretrain.training_features import image_features
from engine.training.schedule import learning_rate
from engine.training.trainingresults import HeldOutCurve

WARM_UP = 100  # steps


def build_cache(
    setting: Setting, tokenizer: CLIPTokenizer, clip: Any, vae: Any, looks: Any = None, factor: float | None = None
) -> tuple[Cache, float]:
    """Images and classes, the null class last, and image features where the recipe asks for them; there is nothing to
    scale."""
    images = normalise(setting.images.pixels)
    count = len(setting.images.class_prompts)
    told = {"labels": torch.arange(count + 1, device=images.device)}
    tokens = None
    if setting.spec.pretrain.pixel.features:
        tokens = image_features(setting, clip, looks, [images])
        told["states"] = torch.zeros(count + 1, 1, tokens.shape[-1], device=images.device)
    labels = setting.images.labels
    return Cache(labels, tokens, (0, 0), images[None], told, labels), 1.0


class PixelStage(DenoiserStage):
    """The U-Net's sizes and settings are the recipe's `pretrain.pixel`."""

    name = "pixel"

    def __init__(self, setting: Setting, cache: Cache, vae: Any = None, factor: float = 1.0) -> None:
        spec, size = setting.spec.pretrain.pixel, setting.spec.images.size
        classes, width = len(setting.images.class_prompts), None if cache.tokens is None else cache.tokens.shape[-1]

        def build() -> Any:
            unet = build_unet(spec, size, classes)
            return unet if width is None else join(unet, build_projection(unet, width))

        flow = spec.objective == "flow"
        self.family: Family = PixelFlow() if flow else Pixel()
        self.scheduler = build_scheduler(spec)
        self.process = (Flow if flow else Edm).of(self.scheduler.config, spec.noise_mean, spec.noise_std)
        super().__init__(setting, spec, cache, setting.build(self.name, build), spec.drop_image)
        self.guide: Any = None

    def lr(self, step: int) -> float:
        """A short warm-up, then a cosine to zero."""
        spec = self._setting.spec.pretrain.pixel
        return learning_rate("cosine", step, self.steps, spec.lr, min(WARM_UP, self.steps // 10))

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """The images."""
        return images

    def finish(self, held: Cache | None) -> HeldOutCurve | None:
        """And keep the weaker model of autoguidance: the average over the beginning of the training, counted up to the
        chosen step."""
        found = super().finish(held)
        self._keep_guide()
        return found

    def _keep_guide(self) -> None:
        share, (whole, length) = self._setting.spec.pretrain.pixel.guide, self.ema.chosen
        if share:
            end = next(step for step in self.ema.steps if step >= share * whole)
            weak = copy.deepcopy(self.module)
            self.ema.put(weak.parameters(), end, length)
            self.guide = getattr(weak, "model", weak)
