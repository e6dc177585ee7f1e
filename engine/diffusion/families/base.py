"""What the engine asks of a family of generators: how it is told what to draw, how it is noised, what it predicts, how it is adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from engine.diffusion.process import Process

# What a network is told, by the family's own names; one image's has no batch dimension. `states` (L, D) are text tokens.
Condition = dict[str, torch.Tensor]


class Encoder(Protocol):
    """Turns prompts and classes into what the network is told, one at a time, so that nothing depends on its neighbours."""

    @property
    def cut_prompts(self) -> int:
        """How many distinct prompts were longer than the text encoder's length and were cut."""

    def encode(self, prompt: str, label: int | None) -> Condition:
        """The condition of one prompt, or of class `label` where the family knows classes only; None: no class, no prompt.

        On the encoder's device and in its dtype, without a batch dimension. An empty or negative prompt comes with the label None.
        """

    def place(self, width: int) -> tuple[int, int]:
        """Where an image feature of `width` numbers stands in `states`: its token, and its first channel there.

        Raises ConfigError where there is no place for it.
        """


class Family(Protocol):
    """One kind of generator; `denoiser` is the pipeline's component that a fine-tune changes."""

    name: str
    denoiser: str

    def encoder(self, pipeline: Any) -> Encoder:
        """The encoder of a loaded pipeline."""

    def process(self, scheduler_config: Any, device: torch.device | str) -> Process:
        """The noising process that the checkpoint was trained under."""

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The network's prediction (B, C, h, w) for noisy latents (B, C, h, w) at times (B,) under a batched condition."""

    def save_lora(self, folder: Path, name: str, denoiser: Any) -> None:
        """Write the adapter that peft has put into the denoiser as the file that stock diffusers loads."""


def to_latents(vae: Any, images: torch.Tensor) -> torch.Tensor:
    """Scaled latents (N, C, h, w), the posterior's mode, of images (N, 3, H, W) in [-1, 1]."""
    latents = vae.encode(images).latent_dist.mode()
    return (latents - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor


def from_latents(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W), about [-1, 1], of scaled latents."""
    return vae.decode(latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)).sample


def with_tokens(condition: Condition, tokens: torch.Tensor, place: tuple[int, int]) -> Condition:
    """A batched condition whose `states` (B, L, D) have the image features `tokens` (B, W) written at `place`.

    The released Real-Fake code (arXiv 2310.10402) puts the projected, not normalised, CLIP image feature in the place of the
    last text token.
    """
    row, first = place
    states = condition["states"].clone()
    states[:, row, first : first + tokens.shape[1]] = tokens.to(states)
    return {**condition, "states": states}
