"""The strongest ordinary augmentation, as a control of synthetic data: RandAugment, with CutMix or mixup, by
torchvision."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

KINDS = ("randaugment+cutmix", "randaugment+mixup", "randaugment")
GROUPS = 8  # of a batch: each group draws its own operations


class Strong:
    """Draws from torch's global generator, which the training has seeded."""

    def __init__(self, kind: str, classes: int) -> None:
        if kind not in KINDS:
            raise ValueError(f"{kind} is not one of {', '.join(KINDS)}")
        self._operations = v2.RandAugment()  # two operations of magnitude 9 (arXiv 1909.13719)
        mixings = {"cutmix": v2.CutMix, "mixup": v2.MixUp}  # arXiv 1905.04899, 1710.09412
        self._mixing = mixings[kind.partition("+")[2]](num_classes=classes) if "+" in kind else None

    def pixels(self, pixels: Tensor) -> Tensor:
        """RandAugment of (B, H, W, 3) uint8, one draw for each eighth of the batch."""
        groups = pixels.permute(0, 3, 1, 2).contiguous().tensor_split(GROUPS)
        return torch.cat([self._operations(group) for group in groups if len(group)]).permute(0, 2, 3, 1)

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) and labels (B,), or mixed ones and the classes' shares (B, C)."""
        if self._mixing is None:
            return images, labels
        mixed, shares = self._mixing(images, labels)
        return mixed, shares
