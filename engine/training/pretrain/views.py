"""Non-leaking augmentation (Karras et al., arXiv 2006.06676 and 2206.00364, appendix F.2): views of images, and labels
that say how they came about.

A denoiser that is told the labels learns the views as conditions of their own; without labels (all zeros, at sampling)
it draws images as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from engine.spec.training import ViewsSpec

SCALE = STRETCH = 0.2  # standard deviations, in octaves
SHIFT = 0.125  # the same, in sides of the image
BRIGHTNESS, CONTRAST, SATURATION = 0.2, 0.5, 1.0  # of [-1, 1], and two in octaves
LUMA = torch.ones(3) / math.sqrt(3)
WIDTH = 13  # of the labels


@dataclass(frozen=True)
class Views:
    """Each kind is applied with its probability on its own, in the order mirror, scale, rotation, stretch, shift,
    colour."""

    spec: ViewsSpec

    def draw(self, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] to views of the same shape and labels (B, WIDTH) float32; a row of zeros is an image
        as it is.

        All numbers come from the CPU `generator`, so that they are the same on every device.
        """
        spec, n = self.spec, len(images)
        matrix, moved = self._geometry(n, generator)
        coloured, shades = self._colours(n, generator)
        labels = torch.cat([moved, shades], 1)
        views = _warp(images, matrix.to(images.device)) if moved.any() else images
        if spec.colour:
            views = _colour(views, coloured.to(images.device))
        plain = (labels == 0).all(1).to(images.device)
        return torch.where(plain[:, None, None, None], images, views.clamp(-1, 1)), labels.to(images.device)

    def _geometry(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Affine maps (n, 2, 3) from places in the view to places in the image, in half sides, and their labels (n,
        8)."""
        spec = self.spec

        def uniform() -> torch.Tensor:
            return torch.rand(n, generator=generator)

        def normal() -> torch.Tensor:
            return torch.randn(n, generator=generator)

        def chosen() -> torch.Tensor:
            return (uniform() < spec.probability).float()

        mirror = (uniform() < 0.5).float() * chosen() * float(spec.mirror)
        scale = normal() * chosen()
        angle = math.radians(spec.degrees) * (2 * uniform() - 1) * chosen()
        direction, stretch = math.pi * (2 * uniform() - 1), normal() * chosen()
        shift = torch.stack([normal(), normal()], 1) * chosen()[:, None]
        zoom = 2 ** (-SCALE * scale)
        linear = torch.diag_embed(torch.stack([1 - 2 * mirror, torch.ones(n)], 1))
        linear = linear @ torch.diag_embed(torch.stack([zoom, zoom], 1)) @ _rotation(-angle)
        ways = torch.stack([2 ** (-STRETCH * stretch), 2 ** (STRETCH * stretch)], 1)
        linear = linear @ _rotation(-direction) @ torch.diag_embed(ways) @ _rotation(direction)
        matrix = torch.cat([linear, -2 * SHIFT * (linear @ shift[..., None])], 2)
        told = [mirror, scale, angle.cos() - 1, angle.sin()]
        told += [stretch * (2 * direction).cos(), stretch * (2 * direction).sin(), *shift.T]
        return matrix, torch.stack(told, 1)

    def _colours(self, n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Affine maps (n, 3, 4) of colours, and their labels (n, 5): brightness, contrast, hue (twice), saturation."""
        spec = self.spec
        drawn = torch.randn(4, n, generator=generator) * (torch.rand(4, n, generator=generator) < spec.probability)
        brightness, contrast, turn, saturation = drawn * float(spec.colour)
        hue = math.pi * (2 * torch.special.ndtr(turn) - 1)
        grey = torch.outer(LUMA, LUMA)
        rest = torch.eye(3) - grey
        x, y, z = LUMA.tolist()
        cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turned = grey + hue.cos()[:, None, None] * rest + hue.sin()[:, None, None] * cross
        strength = 2 ** (SATURATION * saturation)
        linear = (grey + strength[:, None, None] * rest) @ turned * (2 ** (CONTRAST * contrast))[:, None, None]
        matrix = torch.cat([linear, (BRIGHTNESS * brightness)[:, None, None].expand(n, 3, 1)], 2)
        return matrix, torch.stack([brightness, contrast, hue.cos() - 1, hue.sin(), saturation], 1)


class Labelled(nn.Module):
    """A denoiser that is told augmentation labels in training: a bias-free layer adds them to its time embedding.

    What is saved is `model` alone: with labels of zeros the layer adds nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.layer = nn.Linear(WIDTH, model.time_embedding.linear_2.out_features, bias=False)  # type: ignore[union-attr, arg-type]
        nn.init.zeros_(self.layer.weight)
        self._labels: torch.Tensor | None = None
        model.time_embedding.register_forward_hook(self._add)  # type: ignore[union-attr, operator]

    def forward(self, labels: torch.Tensor | None, *args: object, **kwargs: object) -> object:
        """The model's output for its own arguments, under labels (B, WIDTH) or none."""
        self._labels = labels
        try:
            return self.model(*args, **kwargs)
        finally:
            self._labels = None

    def _add(self, module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output if self._labels is None else output + self.layer(self._labels.to(output))


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _warp(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Bicubic, edges mirrored."""
    grid = functional.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False)


def _colour(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    linear, offset = matrix[:, :, :3].to(images), matrix[:, :, 3].to(images)
    return torch.einsum("bij,bjhw->bihw", linear, images) + offset[:, :, None, None]
