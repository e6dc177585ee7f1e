"""What a denoiser is trained on, computed once: latents, image features and encoded conditions of the training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.diffusion.families.base import Condition, with_tokens


@dataclass(frozen=True)
class Cache:
    """Latents and conditions of N images in V variants each (such as the image and its mirror image).

    `latents` (V, N, C, h, w); `tokens` (V, N, D) image features, or None; `told`: the conditions of the U distinct prompts, stacked,
    the last of them the empty one; `told_rows` (N,) into them; `place`: where a feature stands among the text tokens.
    """

    latents: torch.Tensor
    tokens: torch.Tensor | None
    told: Condition
    told_rows: torch.Tensor
    labels: torch.Tensor
    place: tuple[int, int] = (-1, 0)

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

    def condition(
        self, variants: torch.Tensor, rows: torch.Tensor, without: torch.Tensor, without_image: torch.Tensor
    ) -> Condition:
        """What the network is told of b images: the prompt, and the image's feature in its place.

        Rows marked by `without` (b,) bool get the empty prompt and no image, those by `without_image` the bare prompt.
        """
        empty = len(next(iter(self.told.values()))) - 1
        texts = torch.where(without, empty, self.told_rows[rows])
        told = {name: values[texts] for name, values in self.told.items()}
        if self.tokens is None:
            return told
        seen = with_tokens(told, self.tokens[variants, rows], self.place)
        bare = (without | without_image)[:, None, None]
        return {**told, "states": torch.where(bare, told["states"], seen["states"])}
