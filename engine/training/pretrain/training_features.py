"""Image features of training images, as the conditions of a run will have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.training.pretrain.pretrain_stage import Setting

BATCH = 256


@torch.no_grad()
def image_features(setting: Setting, clip: Any, looks: Any, variants: list[torch.Tensor]) -> torch.Tensor:
    """(V, N, D) of V variants (N, 3, H, W) of the images, by the encoder `looks` where there is one, else by CLIP.

    Unit vectors where the recipe's conditions are.
    """
    tokens = torch.stack([features(clip, looks, images) for images in variants])
    return nn.functional.normalize(tokens, dim=-1) if setting.spec.conditions.features.normalise else tokens


@torch.no_grad()
def features(clip: Any, encoder: Any | None, images: torch.Tensor) -> torch.Tensor:
    """What sampling will know images (N, 3, H, W) by: the encoder's features (N, D) where there is one, else CLIP's."""
    if encoder is not None:
        return torch.cat([encoder.eval()(part).pooler_output for part in images.split(BATCH)])
    clip = clip.eval()
    return torch.cat([clip.get_image_features(pixel_values=part).pooler_output for part in images.split(BATCH)])
