"""The first stage: a CLIP that tells the training images' prompts and classes apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import CLIPTokenizer

from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tiny_models import build_clip
from engine.training import draws
from engine.training.gather import gather
from engine.training.pretrain.pretrain_losses import info_nce
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.schedule import one_cycle

CLASS_WEIGHT = 0.5
MAX_LOG_SCALE = math.log(100)


class Towers(nn.Module):
    """Both towers in one forward pass; all outputs are unit vectors."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(
        self, images: torch.Tensor, texts: torch.Tensor, classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(b, 3, H, W), token ids (b, L) and (K, L) to (b, D), (b, D), (K, D) and the inverse temperature."""
        seen = self.clip.get_image_features(pixel_values=images).pooler_output
        told = self.clip.get_text_features(input_ids=torch.cat([texts, classes])).pooler_output
        told = functional.normalize(told, dim=-1)
        scale = self.clip.logit_scale.clamp(max=MAX_LOG_SCALE).exp()
        return functional.normalize(seen, dim=-1), told[: len(texts)], told[len(texts) :], scale


class ClipStage:
    """Contrastive training on (image, prompt), with half a cross entropy against the prompts of the classes alone."""

    name = "clip"
    accumulate = 1
    ema = None

    def __init__(self, setting: Setting, tokenizer: CLIPTokenizer) -> None:
        self._setting, self._spec = setting, setting.spec.pretrain.clip
        self.kept: dict[str, torch.Tensor] = {}
        self.steps, self.weight_decay = self._spec.steps, self._spec.weight_decay
        self.clip_norm = 1.0
        size = setting.spec.images.size
        self.model: Any = setting.build(self.name, lambda: build_clip(self._spec, tokenizer, size))
        self.module = Towers(self.model)
        prompts = dict.fromkeys(setting.images.prompts)
        numbers = {prompt: number for number, prompt in enumerate(prompts)}
        self._ids = _tokens(tokenizer, list(prompts)).to(setting.place.device)
        self._class_ids = _tokens(tokenizer, list(setting.images.class_prompts)).to(setting.place.device)
        self._groups = torch.tensor([numbers[p] for p in setting.images.prompts], device=setting.place.device)

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return one_cycle(step, self.steps, self._spec.lr)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """Every rank computes the loss of the whole gathered batch."""
        setting, place = self._setting, self._setting.place
        rows = setting.rows(self.name, step, self._spec.batch)
        groups, labels = self._groups[rows], setting.images.labels[rows]
        generator = draws.generator(setting.seed, self.name, step)
        images = setting.augment(normalise(setting.images.pixels[rows]), generator)
        part = place.part(self._spec.batch)
        seen, told, classes, scale = module(images[part], self._ids[groups[part]], self._class_ids)
        seen, told = gather(seen, place), gather(told, place)
        contrast = info_nce(seen, told, groups, scale)
        return contrast + CLASS_WEIGHT * functional.cross_entropy(scale * seen @ classes.T, labels)


def _tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
