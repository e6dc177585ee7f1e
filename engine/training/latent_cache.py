"""What a denoiser is trained on: latents, image features and encoded conditions of the training images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from engine.diffusion.families.family import Condition, with_tokens


@dataclass(frozen=True)
class Inputs(ABC):
    """N images in V variants each (such as the image and its mirror image).

    `labels` (N,) int64; `tokens` (V, N, D) image features, None where none is told; `place`: where they stand among the
    text tokens.
    """

    labels: torch.Tensor
    tokens: torch.Tensor | None
    place: tuple[int, int]

    @property
    @abstractmethod
    def variants(self) -> int:
        """V."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""

    @abstractmethod
    def draw(self, variants: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Latents (b, C, h, w)."""

    @abstractmethod
    def prompts(self, rows: torch.Tensor, without: torch.Tensor) -> Condition:
        """The encoded prompts of b images, the empty one in rows marked by `without` (b,) bool."""

    def condition(
        self, variants: torch.Tensor, rows: torch.Tensor, without: torch.Tensor, without_image: torch.Tensor
    ) -> Condition:
        """What the network is told of b images: the prompt, and the image's feature in its place.

        Rows marked by `without` (b,) bool get the empty prompt and no image, those by `without_image` the bare prompt.
        """
        told = self.prompts(rows, without)
        if self.tokens is None:
            return told
        seen = with_tokens(told, self.tokens[variants, rows], self.place)
        bare = (without | without_image)[:, None, None]
        return {**told, "states": torch.where(bare, told["states"], seen["states"])}


@dataclass(frozen=True)
class Cache(Inputs):
    """Everything computed once: `latents` (V, N, C, h, w); `told`, the conditions of the U distinct prompts, stacked,
    the empty one last; `told_rows` (N,) into them."""

    latents: torch.Tensor
    told: Condition
    told_rows: torch.Tensor

    @property
    def variants(self) -> int:
        """V."""
        return len(self.latents)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, h, w)."""
        return tuple(self.latents.shape[2:])

    def draw(self, variants: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Latents (b, C, h, w)."""
        return self.latents[variants, rows]

    def prompts(self, rows: torch.Tensor, without: torch.Tensor) -> Condition:
        """Looked up."""
        empty = len(next(iter(self.told.values()))) - 1
        texts = torch.where(without, empty, self.told_rows[rows])
        return {name: values[texts] for name, values in self.told.items()}
