"""Image features of training images, as the conditions of a run will have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.training.pretrain.stage import Setting
from engine.training.pretrain.vae import ENCODE_BATCH


@torch.no_grad()
def image_features(setting: Setting, clip: Any, variants: list[torch.Tensor]) -> torch.Tensor:
    """(V, N, D) of V variants (N, 3, H, W) of the images; unit vectors where the recipe's conditions are."""
    clip = clip.eval()
    found = [
        torch.cat([clip.get_image_features(pixel_values=part).pooler_output for part in images.split(ENCODE_BATCH)])
        for images in variants
    ]
    tokens = torch.stack(found)
    return nn.functional.normalize(tokens, dim=-1) if setting.spec.conditions.features.normalise else tokens
