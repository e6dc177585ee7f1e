"""An optional stage: a small network of the training images alone, whose features take the place of CLIP's image
features."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from engine.diffusion.tiny.directory import normalise
from engine.diffusion.tiny.tiny_models import build_encoder
from engine.spec.training import EncoderSpec
from engine.training import draws
from engine.training.gather import gather
from engine.training.pretrain.pretrain_losses import nt_xent
from engine.training.pretrain.pretrain_stage import Setting
from engine.training.schedule import one_cycle

ASPECT = (3 / 4, 4 / 3)  # of crops, as torchvision's RandomResizedCrop and SimCLR have it


class Headed(nn.Module):
    """The encoder with a head that training alone needs: SimCLR's two-layer projection, or a classifier."""

    def __init__(self, encoder: Any, spec: EncoderSpec, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = spec.blocks[-1]
        if spec.kind == "classifier":
            self.head: nn.Module = nn.Linear(width, classes)
        else:
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(b, 3, H, W) to projections (b, D), or logits (b, classes)."""
        return self.head(self.encoder(images).pooler_output)  # type: ignore[no-any-return]


class EncoderStage:
    """SimCLR (arXiv 2002.05709) on two views of each image, or cross entropy on one; the features are those before the
    head."""

    name = "encoder"
    accumulate = 1
    ema = None
    clip_norm = 1.0

    def __init__(self, setting: Setting) -> None:
        spec = setting.spec.pretrain.encoder
        assert spec is not None
        self._setting, self._spec = setting, spec
        self.kept: dict[str, torch.Tensor] = {}
        self.steps, self.weight_decay = spec.steps, spec.weight_decay
        classes = len(setting.images.class_prompts)
        self.module: Headed = setting.build(self.name, lambda: Headed(build_encoder(spec), spec, classes))

    @property
    def model(self) -> Any:
        """The `transformers.ConvNextModel` without its head."""
        return self.module.encoder

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return one_cycle(step, self.steps, self._spec.lr)

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """SimCLR: every rank computes the loss of the whole gathered batch; classifier: that of its own part."""
        setting, place, spec = self._setting, self._setting.place, self._spec
        rows, part = setting.rows(self.name, step, spec.batch), place.part(spec.batch)
        generator = draws.generator(setting.seed, self.name, step)
        images = normalise(setting.images.pixels[rows])
        first = view(setting.augment(images, generator), spec, generator)[part]
        if spec.kind == "classifier":
            return functional.cross_entropy(module(first), setting.images.labels[rows][part])
        second = view(setting.augment(images, generator), spec, generator)[part]
        one, other = module(torch.cat([first, second])).chunk(2)
        return nt_xent(gather(one, place), gather(other, place), spec.temperature)


def view(images: torch.Tensor, spec: EncoderSpec, generator: torch.Generator) -> torch.Tensor:
    """A crop of `spec.crop` to all of the area, resized back, with brightness, contrast and saturation off by up to
    `spec.jitter`.

    Images (N, 3, H, W) in [-1, 1]; crops lie inside the image. The draws are the CPU `generator`'s.
    """
    return _jittered(_cropped(images, spec.crop, generator), spec.jitter, generator)


def _cropped(images: torch.Tensor, least: float, generator: torch.Generator) -> torch.Tensor:
    share, shape, x, y = torch.rand(4, len(images), generator=generator)
    area = least + (1 - least) * share
    low, high = (math.log(side) for side in ASPECT)
    aspect = torch.exp(low + (high - low) * shape)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    zero = torch.zeros_like(width)
    rows = [
        torch.stack([width, zero, (2 * x - 1) * (1 - width)], 1),
        torch.stack([zero, height, (2 * y - 1) * (1 - height)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1).to(images.device), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _jittered(images: torch.Tensor, most: float, generator: torch.Generator) -> torch.Tensor:
    factors = 1 + most * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    brightness, contrast, saturation = factors.to(images.device)
    images = (images + 1) * brightness - 1
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = middle + contrast * (images - middle)
    grey = images.mean(dim=1, keepdim=True)
    return (grey + saturation * (images - grey)).clamp(-1, 1)
