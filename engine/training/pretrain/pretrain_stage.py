"""What the three stages of the pretraining share: the recipe, the images, and how batches and first weights are
drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from engine.seeds import derive
from engine.spec import RunSpec
from engine.training import draws
from engine.training.pretrain.views import Views
from engine.training.setup import Place

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class TrainingSet:
    """The training images in key order, on the worker's device: `pixels` (N, H, W, 3) uint8, `labels` (N,) int64,
    prompts."""

    pixels: torch.Tensor
    labels: torch.Tensor
    prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: np.ndarray) -> TrainingSet:
        """Some of them."""
        chosen = torch.from_numpy(rows).to(self.labels.device)
        prompts = tuple(self.prompts[row] for row in rows)
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen], prompts=prompts)


@dataclass(frozen=True)
class Setting:
    """What all stages share: the recipe, where they run, the images, the augmentation, views, and images that no stage
    is trained on."""

    spec: RunSpec
    place: Place
    images: TrainingSet
    augment: Augment
    views: Views | None = None
    held: TrainingSet | None = None

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
            torch.manual_seed(derive(self.seed, stage, "weights"))
            return make().to(self.place.device)
