"""The judge: a small CNN, its augmentation and its training, the same number of steps whatever the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.spec.recipe import JudgeSpec
from engine.training.strong import Strong

DROPOUT = 0.2
WEIGHT_DECAY = 0.05
SHIFT = 1 / 8  # of the side: 1 px of 8
DEGREES = 10.0
SCALE = 0.10
EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Part:
    """Labelled images of one origin: `pixels` (N, size, size, 3) uint8, `labels` (N,) int64."""

    pixels: Tensor
    labels: Tensor


def joined(parts: list[Part]) -> Part:
    """All parts as one: every image is drawn equally often."""
    return Part(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))


def _stage(inputs: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers


class Judge(nn.Module):
    """conv w-w, pool, 2w-2w, (size 32 and more: pool, 4w-4w), average pool, fc; batch norm, dropout 0.2.

    Takes (B, 3, size, size) float32 in [-1, 1], gives (B, classes) logits.
    """

    def __init__(self, size: int, classes: int, width: int) -> None:
        super().__init__()
        stages = 3 if size >= 32 else 2
        layers: list[nn.Module] = []
        channels = 3
        for stage in range(stages):
            if stage:
                layers.append(nn.MaxPool2d(2))
            layers += _stage(channels, width * 2**stage)
            channels = width * 2**stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(channels, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.head(self.features(images).mean(dim=(2, 3)))


def normalise(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1], channels last in memory, which is faster on the CPU."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, chosen at random, left to right."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


def affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 10 degrees, scale by up to 10 % and shift by up to 1/8 of the side, uniformly; edges are
    repeated."""
    draws = torch.rand(4, len(images), generator=generator) * 2 - 1
    angle, scale = draws[0] * math.radians(DEGREES), 1 + draws[1] * SCALE
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    shift = draws[2:] * 2 * SHIFT  # the sampling grid is 2 wide
    theta = torch.stack([torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)], 1)
    grid = functional.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


AUGMENTATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda images, generator: images,
    "flip": flip,
    "affine": affine,
}


def batches(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices (batch,) for ever: one permutation of range(count) after the other, cut into batches."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < batch:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:batch]
        left = left[batch:]


def shares(batch: int, parts: int) -> list[int]:
    """The batch split over the parts as evenly as whole numbers allow, the first parts taking what is left over."""
    return [batch // parts + (k < batch % parts) for k in range(parts)]


def train(
    parts: list[Part],
    spec: JudgeSpec,
    classes: int,
    seed: int,
    device: torch.device | str = "cpu",
    tick: Callable[[int, float], None] = lambda step, loss: None,
    *,
    strong: str | None = None,
) -> tuple[Judge, float]:
    """Train one judge for `spec.steps` steps; returns it and its mean loss over the last tenth of the steps.

    Every part gives an equal share of each batch, or under `mixing: proportional` one in proportion to its size. AdamW
    under a one-cycle schedule; nothing is selected: the last weights are the result. `seed` alone sets the initial
    weights, the batches, the augmentation and the dropout.
    `tick(step, loss)` is called about every 50 steps. `strong`: one of `engine.training.strong.KINDS`, on top of
    `spec.augment`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    size = int(parts[0].pixels.shape[1])
    model = Judge(size, classes, spec.width).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.lr, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=spec.lr, total_steps=max(spec.steps, 2))
    augment = AUGMENTATIONS[spec.augment]
    more = Strong(strong, classes) if strong is not None else None
    parts = [joined(parts)] if spec.mixing == "proportional" else parts
    parts = [Part(part.pixels.to(device), part.labels.to(device)) for part in parts]
    drawn = [
        batches(len(part.labels), n, generator) for part, n in zip(parts, shares(spec.batch, len(parts)), strict=True)
    ]
    losses = []
    for step in range(1, spec.steps + 1):
        chosen = [next(indices).to(device) for indices in drawn]
        pixels = torch.cat([part.pixels[i] for part, i in zip(parts, chosen, strict=True)])
        labels = torch.cat([part.labels[i] for part, i in zip(parts, chosen, strict=True)])
        images = augment(normalise(pixels if more is None else more.pixels(pixels)), generator)
        images, labels = (images, labels) if more is None else more.mixed(images, labels)
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
        if step % 50 == 0 or step == spec.steps:
            tick(step, float(loss.detach()))
    tail = torch.stack(losses[-max(1, spec.steps // 10) :])
    return model.eval(), float(tail.mean())


@torch.inference_mode()
def predict(model: Judge, pixels: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """The predicted class (N,) int64 of each image of `pixels` (N, size, size, 3) uint8."""
    out = [model(normalise(chunk.to(device))).argmax(1).cpu() for chunk in pixels.split(EVALUATION_BATCH)]
    return torch.cat(out).numpy() if out else np.empty(0, np.int64)


@torch.inference_mode()
def logits(model: Judge, pixels: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """The logits (N, C) float32 of each image of `pixels` (N, size, size, 3) uint8; N > 0."""
    return torch.cat([model(normalise(chunk.to(device))).cpu() for chunk in pixels.split(EVALUATION_BATCH)]).numpy()


@torch.inference_mode()
def probabilities(model: Judge, pixels: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """The class probabilities (N, C) float32 of each image of `pixels` (N, size, size, 3) uint8."""
    out = [model(normalise(chunk.to(device))).softmax(1).cpu() for chunk in pixels.split(EVALUATION_BATCH)]
    return torch.cat(out).numpy() if out else np.empty((0, 0), np.float32)
