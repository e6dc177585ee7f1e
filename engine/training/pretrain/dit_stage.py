"""The third stage with a DiT, which is told the class of an image and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPTokenizer

from engine.diffusion.families.dit import CLASSES, Dit
from engine.diffusion.families.family import Family
from engine.diffusion.tiny.tiny_models import build_dit
from engine.training.latent_cache import Cache
from engine.training.pretrain.denoiser import LatentStage, scaled_latents, variants
from engine.training.pretrain.pretrain_stage import Setting


def build_cache(
    setting: Setting, tokenizer: CLIPTokenizer, clip: Any, vae: Any, looks: Any = None, factor: float | None = None
) -> tuple[Cache, float]:
    """Latents and classes of the training images, the null class last, and the VAE's scaling factor."""
    latents, scaling_factor = scaled_latents(variants(setting), vae, factor)
    known = torch.arange(len(setting.images.class_prompts), device=latents.device)
    null = torch.tensor([CLASSES], device=latents.device)
    labels = setting.images.labels
    told = {"labels": torch.cat([known, null])}
    return Cache(labels, None, (-1, 0), latents, told, labels), scaling_factor


class DitStage(LatentStage):
    """The transformer's sizes and settings are the recipe's `pretrain.dit`."""

    name = "dit"
    family: Family = Dit()

    def __init__(self, setting: Setting, cache: Cache, vae: Any = None, factor: float = 1.0) -> None:
        pretrain, size = setting.spec.pretrain, setting.spec.images.size
        model = setting.build(self.name, lambda: build_dit(pretrain.dit, pretrain.vae, size))
        super().__init__(setting, pretrain.dit, cache, model, 0.0)
        self._under_sd(vae, factor)
