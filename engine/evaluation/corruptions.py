"""Common corruptions of a test set, computed here in the manner of ImageNet-C and CIFAR-C; not the published sets.

After Hendrycks and Dietterich, arXiv 1903.12261: twelve of the kinds there and here, five severities. Strengths of
noise, light and compression are those of the paper's ImageNet set; lengths (blur, elastic) are fractions of the image's
side, with a least length in pixels, so that one recipe fits sides of 8 to 224 pixels. Snow, frost, fog and glass blur
are not here.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms

from engine.spec.evaluation import CORRUPTIONS

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
STYLE = (
    "Corruptions are computed here, -C style (after arXiv 1903.12261): they are not the "
    "published ImageNet-C or CIFAR-C "
    "files, and their accuracies must not be set beside published ones."
)
NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviation, of the range 0 to 1
PHOTONS = (60, 25, 12, 5, 3)  # a full white pixel's mean count
IMPULSES = (0.03, 0.06, 0.09, 0.17, 0.27)  # share of values that become 0 or 1
BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)  # added to the value of HSV
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)  # what is left of it
ZOOM = (
    (1.11, 0.01),
    (1.16, 0.01),
    (1.21, 0.02),
    (1.26, 0.02),
    (1.31, 0.03),
)  # enlargements from 1: end (left out), step
COARSE = (0.6, 0.5, 0.4, 0.3, 0.25)  # of the side
QUALITY = (25, 18, 15, 10, 7)
# (fraction of the side, least pixels) at each severity
RADIUS = ((0.013, 0.6), (0.018, 0.8), (0.027, 1.0), (0.036, 1.25), (0.045, 1.5))
SIGMA = ((0.006, 0.35), (0.010, 0.45), (0.015, 0.55), (0.020, 0.7), (0.027, 0.9))
STREAK = ((0.045, 1.5), (0.067, 2.0), (0.089, 2.5), (0.112, 3.0), (0.134, 3.5))
SHIFT = ((0.012, 0.3), (0.018, 0.4), (0.025, 0.55), (0.032, 0.7), (0.040, 0.9))
SMOOTH = 0.1  # of the side: how far displacements of the elastic kind reach
TAPS = 15


def corrupt(pixels: Pixels, kind: str, severity: int, *, seed: int = 0, first: int = 0) -> Pixels:
    """Images (N, S, S, 3) uint8 after the corruption `kind` (of CORRUPTIONS) at `severity` 1 to 5, same shape and type.

    What is random in image i depends on (seed, kind, severity, first + i) alone, so a set may be cut into any chunks.
    Raises KeyError for another kind, IndexError for another severity.
    """
    apply = KINDS[kind]
    if not 1 <= severity <= 5:
        raise IndexError(f"severity {severity}")
    key = CORRUPTIONS.index(kind)  # type: ignore[arg-type]
    draws = [np.random.default_rng([seed, key, severity, first + i]) for i in range(len(pixels))]
    if not len(pixels):
        return pixels
    return apply(pixels, severity - 1, draws)


def length(pixels: Pixels, table: tuple[tuple[float, float], ...], k: int) -> float:
    """A length in pixels for images of this side."""
    fraction, least = table[k]
    return max(fraction * pixels.shape[1], least)


Draws = list[np.random.Generator]


def _unit(pixels: Pixels) -> Floats:
    return pixels / 255.0


def _bytes(values: Floats) -> Pixels:
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def _gaussian_noise(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    noise = np.stack([draw.normal(0.0, NOISE[k], pixels.shape[1:]) for draw in draws])
    return _bytes(_unit(pixels) + noise)


def _shot_noise(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    light = _unit(pixels) * PHOTONS[k]
    return _bytes(np.stack([draw.poisson(image) for draw, image in zip(draws, light, strict=True)]) / PHOTONS[k])


def _impulse_noise(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    out = pixels.copy()
    for image, draw in zip(out, draws, strict=True):
        uniform = draw.random(image.shape)
        image[uniform < IMPULSES[k]] = 255
        image[uniform < IMPULSES[k] / 2] = 0
    return out


def disk(radius: float) -> Floats:
    """A uniform disk as a kernel that sums to one; each pixel has the share of its area that lies inside, by 11 x 11
    points."""
    reach = int(np.ceil(radius))
    inner = (np.arange(11) - 5) / 11
    axis = (np.arange(-reach, reach + 1)[:, None] + inner).reshape(-1)
    inside = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    side = 2 * reach + 1
    kernel = inside.reshape(side, 11, side, 11).mean(axis=(1, 3))
    return np.asarray(kernel / kernel.sum())


def _defocus_blur(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    kernel = disk(length(pixels, RADIUS, k))[None, :, :, None]
    return _bytes(ndimage.convolve(_unit(pixels), kernel, mode="nearest"))


def _gaussian_blur(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    sigma = length(pixels, SIGMA, k)
    return _bytes(ndimage.gaussian_filter(_unit(pixels), (0, sigma, sigma, 0), mode="nearest"))


def _moved(pixels: Pixels, theta: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, S, S) in 0 to 1 after affine maps (N, 2, 3) of the sampling grid; edges are repeated."""
    images = torch.from_numpy(_unit(pixels)).permute(0, 3, 1, 2)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _mean_of(moved: list[torch.Tensor]) -> Pixels:
    return _bytes(torch.stack(moved).mean(0).permute(0, 2, 3, 1).numpy())


def _motion_blur(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    """The mean along a straight streak; its direction is drawn within 45 degrees of the horizontal."""
    half = length(pixels, STREAK, k) / pixels.shape[1]  # the sampling grid is 2 wide
    angle = torch.tensor([draw.uniform(-np.pi / 4, np.pi / 4) for draw in draws], dtype=torch.float64)
    theta = torch.eye(2, 3, dtype=torch.float64).repeat(len(pixels), 1, 1)
    moved = []
    for place in np.linspace(-1.0, 1.0, TAPS):
        theta[:, 0, 2], theta[:, 1, 2] = place * half * angle.cos(), place * half * angle.sin()
        moved.append(_moved(pixels, theta))
    return _mean_of(moved)


def _zoom_blur(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    """The mean of the image and of its enlargements, as published: the first of these is the image once more."""
    scales = 1.0 / np.concatenate([[1.0], np.arange(1.0, *ZOOM[k])])
    eye = torch.eye(2, 3, dtype=torch.float64).repeat(len(pixels), 1, 1)
    return _mean_of([_moved(pixels, eye * scale) for scale in scales])


def _brightness(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    """Raise the value of HSV; hue and saturation stay."""
    images = _unit(pixels)
    value = images.max(-1, keepdims=True)
    raised = np.minimum(value + BRIGHTER[k], 1.0)
    return _bytes(np.where(value > 0, images * raised / np.where(value > 0, value, 1.0), raised))


def _contrast(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    images = _unit(pixels)
    centre = images.mean(axis=(1, 2), keepdims=True)
    return _bytes((images - centre) * CONTRAST[k] + centre)


def displacement(side: int, k: int, draw: np.random.Generator) -> Floats:
    """Smooth shifts (side, side, 2) in pixels, whose root mean square is the severity's length."""
    wanted = max(SHIFT[k][0] * side, SHIFT[k][1])
    sigma = max(SMOOTH * side, 1.0)
    field = ndimage.gaussian_filter(draw.normal(size=(side, side, 2)), (sigma, sigma, 0), mode="reflect")
    return np.asarray(field * (wanted / np.sqrt((field**2).mean())))


def _elastic(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    side, out = pixels.shape[1], np.empty_like(pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    for i, draw in enumerate(draws):
        field = torch.from_numpy(displacement(side, k, draw) * 2 / side)[None].float()  # in halves of the side
        out[i] = transforms.elastic(images[i], field).permute(1, 2, 0).numpy()
    return out


def _pixelate(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    side = pixels.shape[1]
    coarse = max(1, round(COARSE[k] * side))
    box, nearest = Image.Resampling.BOX, Image.Resampling.NEAREST
    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((coarse, coarse), box).resize((side, side), nearest))
            for image in pixels
        ]
    )


def _jpeg(pixels: Pixels, k: int, draws: Draws) -> Pixels:
    out = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY[k])
        out[i] = np.asarray(Image.open(buffer).convert("RGB"))
    return out


KINDS: dict[str, Callable[[Pixels, int, Draws], Pixels]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic": _elastic,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
}
