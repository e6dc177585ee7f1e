"""What happens to images on their way into a classifier: torchvision's transforms, drawn for each sample alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from engine.seeds import derive
from engine.spec.classifier import TrainSpec

BILINEAR = v2.InterpolationMode.BILINEAR
SHIFT = 1 / 8
DEGREES = 10.0
SCALE = 0.10
PADDING = 1 / 8


def transforms(spec: TrainSpec, size: int) -> list[v2.Transform]:
    """Random transforms of one (3, H, W) uint8 image, in their order; the last one leaves size x size pixels."""
    steps: list[v2.Transform] = []
    if spec.affine:
        steps.append(v2.RandomAffine(DEGREES, (SHIFT, SHIFT), (1 - SCALE, 1 + SCALE), interpolation=BILINEAR))
    if spec.crop == "resized":
        steps.append(v2.RandomResizedCrop(size, scale=spec.crop_scale, antialias=True))
    elif spec.crop == "padded":
        steps.append(v2.RandomCrop(size, padding=max(1, round(size * PADDING)), padding_mode="reflect"))
    if spec.flip:
        steps.append(v2.RandomHorizontalFlip())
    if spec.color_jitter:
        steps.append(v2.ColorJitter(spec.color_jitter, spec.color_jitter, spec.color_jitter))
    if spec.rand_augment:
        steps.append(v2.RandAugment(spec.rand_augment_ops, spec.rand_augment))
    return steps


class Augment:
    """Random transforms of a batch; each image's draws follow from (seed, step, its row in the global batch) alone."""

    def __init__(self, spec: TrainSpec, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._steps = transforms(spec, size)
        self._resize_first = spec.crop != "resized"

    def __call__(self, images: Tensor, step: int, first: int) -> Tensor:
        """(B, 3, H, W) uint8, rows first .. first+B of the global batch of a step, to (B, 3, size, size) uint8."""
        if self._resize_first:
            images = resized(images, self._size)
        if not self._steps:
            return images
        out = torch.empty((len(images), 3, self._size, self._size), dtype=torch.uint8)
        for number, image in enumerate(images):
            torch.default_generator.manual_seed(derive(self._seed, "augment", step, first + number))
            for transform in self._steps:
                image = transform(image)
            out[number] = image
        return out


def resized(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, H) uint8 at size x size, antialiased; as they are where they fit."""
    return images if images.shape[-1] == size else v2.functional.resize(images, [size, size], antialias=True)


def centred(images: Tensor, size: int, crop_pct: float) -> Tensor:
    """What is evaluated: (B, 3, H, H) uint8 resized to size / crop_pct, and its centre of size x size."""
    side = round(size / crop_pct)
    return v2.functional.center_crop(resized(images, side), [size, size])


def normalised(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], channels last in memory."""
    return images.float().div_(127.5).sub_(1.0).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Mix:
    """How the pairs of a batch are mixed: each image with its neighbour 2k <-> 2k + 1; `share` of its own is kept.

    `box`: (top, bottom, left, right) as shares of the side, for CutMix; None for mixup.
    """

    share: float
    box: tuple[float, float, float, float] | None = None

    def images(self, images: Tensor) -> Tensor:
        """Mixed images (B, 3, H, W)."""
        other = _neighbours(images)
        if self.box is None:
            return images * self.share + other * (1 - self.share)
        top, bottom, left, right = _pixels(self.box, images.shape[-1])
        out = images.clone()
        out[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return out

    def targets(self, labels: Tensor, classes: int, side: int) -> Tensor:
        """Soft labels (B, classes): for CutMix by the area that is really cut."""
        share = self.share
        if self.box is not None:
            top, bottom, left, right = _pixels(self.box, side)
            share = 1 - (bottom - top) * (right - left) / side**2
        hot = functional.one_hot(labels, classes).float()
        return hot * share + _neighbours(hot) * (1 - share)


def mix(spec: TrainSpec, seed: int, step: int) -> Mix | None:
    """The mixing of a step, the same on every rank: lambda ~ Beta(alpha, alpha), mixup (arXiv 1710.09412) or CutMix
    (arXiv 1905.04899).

    Each has an even chance where both are asked for. None where neither is.
    """
    if not spec.mixup and not spec.cutmix:
        return None
    rng = np.random.default_rng(derive(seed, "mix", step))
    cut = spec.cutmix > 0 and (not spec.mixup or rng.random() < 0.5)
    alpha = spec.cutmix if cut else spec.mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(share)
    half = float(np.sqrt(1 - share)) / 2
    y, x = rng.random(2)
    return Mix(share, (max(y - half, 0), min(y + half, 1), max(x - half, 0), min(x + half, 1)))


def _neighbours(values: Tensor) -> Tensor:
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _pixels(box: tuple[float, float, float, float], side: int) -> tuple[int, int, int, int]:
    top, bottom, left, right = (round(edge * side) for edge in box)
    return top, bottom, left, right
