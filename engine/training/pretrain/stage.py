"""What the three stages of the pretraining share: the recipe, the images, and how batches and first weights are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from engine.spec import RunSpec
from engine.training import draws
from engine.training.setup import Place

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class TrainingSet:
    """The training images in key order, on the worker's device: `pixels` (N, H, W, 3) uint8, `labels` (N,) int64, prompts."""

    pixels: torch.Tensor
    labels: torch.Tensor
    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    class_names: tuple[str, ...] = ()

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
