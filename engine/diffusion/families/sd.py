"""Stable Diffusion 1 and 2: a U-Net that reads the tokens of one CLIP text encoder; noise or velocity prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.diffusion.conditioning import PromptEncoder, check_feature_dim
from engine.diffusion.families.base import Condition
from engine.diffusion.process import Diffusion, Process


class SdEncoder:
    """The text encoder's tokens as `states`; the image feature takes the place of the last one."""

    def __init__(self, prompts: PromptEncoder) -> None:
        self._prompts = prompts

    @property
    def cut_prompts(self) -> int:
        """How many distinct prompts were cut."""
        return self._prompts.cut_prompts

    def encode(self, prompt: str, label: int | None = None) -> Condition:
        """`states` (L, D)."""
        return {"states": self._prompts.encode(prompt)}

    def place(self, width: int) -> tuple[int, int]:
        """The whole last token."""
        check_feature_dim(width, self._prompts.width)
        return self._prompts.length - 1, 0


class StableDiffusion:
    """The family of `StableDiffusionPipeline`."""

    name = "Stable Diffusion 1 or 2"
    denoiser = "unet"

    def encoder(self, pipeline: Any) -> SdEncoder:
        """The encoder of a loaded pipeline."""
        return SdEncoder(PromptEncoder(pipeline.tokenizer, pipeline.text_encoder))

    def process(self, scheduler_config: Any, device: torch.device | str = "cpu") -> Process:
        """DDPM's, with the checkpoint's noise schedule and prediction type."""
        return Diffusion.of(scheduler_config, device)

    def predict(self, denoiser: Any, noisy: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
        """The U-Net's output."""
        return denoiser(noisy, times, encoder_hidden_states=condition["states"]).sample

    def save_lora(self, folder: Path, name: str, denoiser: Any) -> None:
        """With peft's names, which the stock loader takes for any mix of modules, and its configuration as metadata."""
        from diffusers import StableDiffusionPipeline
        from peft.utils import get_peft_model_state_dict

        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=get_peft_model_state_dict(denoiser),
            weight_name=name,
            safe_serialization=True,
            unet_lora_adapter_metadata=denoiser.peft_config["default"].to_dict(),
        )
