"""What a stage of the training is: a module, its optimiser settings, and a loss that is a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from engine.spec import RunSpec
from engine.training.pretrain import draws
from engine.training.pretrain.ema import Ema
from engine.training.setup import Place

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class Stage(Protocol):
    """One of CLIP, VAE, U-Net."""

    name: str
    steps: int
    lr: float
    weight_decay: float
    clip_norm: float

    @property
    def module(self) -> nn.Module:
        """What is trained."""

    @property
    def ema(self) -> Ema | None:
        """The average of its weights that is the stage's result, if there is one."""

    def loss(self, module: nn.Module, step: int) -> torch.Tensor:
        """The loss of this rank's part of the global batch; its mean over the ranks is the loss of the whole batch."""


@dataclass(frozen=True)
class TrainingSet:
    """The training images in key order, on the worker's device: `pixels` (N, H, W, 3) uint8, `labels` (N,) int64, prompts."""

    pixels: torch.Tensor
    labels: torch.Tensor
    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Setting:
    """What all stages share: the recipe, where they run, the images, the augmentation."""

    spec: RunSpec
    place: Place
    images: TrainingSet
    augment: Augment

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.spec.seed

    def rows(self, stage: str, step: int, batch: int) -> torch.Tensor:
        """Rows of the global batch of a step, (batch,) int64, on the device."""
        return draws.batch_indices(self.seed, stage, step, batch, len(self.images)).to(self.place.device)

    def build(self, stage: str, make: Callable[[], Any]) -> Any:
        """A model whose first weights depend on the seed and the stage alone, on the device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.derive(self.seed, stage, "weights"))
            return make().to(self.place.device)
