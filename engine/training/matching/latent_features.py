"""Image features of latents as one differentiable function, for the MMD term that compares features."""

from __future__ import annotations

from typing import Any

import torch

from engine.conditions.featuremodel import FeatureModel
from engine.conditions.features import tower
from engine.diffusion.families.family import from_latents
from engine.training.matching.terms import Features


def features(vae: Any, model: FeatureModel, device: torch.device, digest: str = "") -> Features:
    """Scaled latents (B, C, h, w) to features (B, D): decoded, resized and normalised as the image tower wants them.

    `digest` is the model's where it is known: StorageError when the files are others.
    """
    look = tower(model, str(device), digest)

    def run(latents: torch.Tensor) -> torch.Tensor:
        return look((from_latents(vae, latents) * 0.5 + 0.5).clamp(0, 1))

    return run
