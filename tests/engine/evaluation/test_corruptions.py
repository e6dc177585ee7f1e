"""Corruptions against independent oracles: statistics of noise, scipy's blur, torchvision's JPEG, and their order."""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchvision.io import decode_jpeg, encode_jpeg

from engine.evaluation import corruptions
from engine.evaluation.corruptions import KINDS, corrupt
from engine.spec.evaluation import CORRUPTIONS

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "elastic")


def grey(value: int, side: int = 32, n: int = 4) -> np.ndarray:
    return np.full((n, side, side, 3), value, np.uint8)


def textured(side: int, n: int = 6) -> np.ndarray:
    """Noise smoothed to 1/12 of the side: has detail at every size, away from black and white."""
    rng = np.random.default_rng(0)
    field = ndimage.gaussian_filter(rng.normal(size=(n, side, side, 3)), (0, side / 12, side / 12, 0))
    return np.clip(128 + 45 * field / field.std(), 0, 255).astype(np.uint8)


def test_every_kind_of_the_spec_is_there() -> None:
    assert tuple(KINDS) == CORRUPTIONS


@pytest.mark.parametrize("side", [8, 28, 96])
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_shape_determinism_and_order_of_severities(kind: str, side: int) -> None:
    images = textured(side)
    before = images.copy()
    made = [corrupt(images, kind, severity, seed=3) for severity in range(1, 6)]
    assert all(m.shape == images.shape and m.dtype == np.uint8 for m in made)
    assert np.array_equal(images, before)
    distance = [np.abs(m.astype(float) - images).mean() for m in made]
    assert distance[0] > 0
    assert all(b >= a * 0.97 for a, b in pairwise(distance)), distance
    assert distance[4] > 1.1 * distance[0]
    chunks = [corrupt(images[i : i + 2], kind, 3, seed=3, first=i) for i in range(0, 6, 2)]
    assert np.array_equal(np.concatenate(chunks), made[2])
    differs = not np.array_equal(corrupt(images, kind, 3, seed=4), made[2])
    assert differs == (kind in RANDOM)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise_has_its_standard_deviation(severity: int) -> None:
    noise = corrupt(grey(128, 64, 8), "gaussian_noise", severity).astype(float) - 128
    expected = np.random.default_rng(0).normal(0, corruptions.NOISE[severity - 1] * 255, 200_000)
    clipped = np.clip(expected, -128, 127)
    assert noise.std() == pytest.approx(clipped.std(), rel=0.02)


@pytest.mark.parametrize("severity", [1, 3])
def test_shot_noise_has_the_variance_of_photons(severity: int) -> None:
    level, photons = 0.25, corruptions.PHOTONS[severity - 1]
    values = corrupt(grey(64, 64, 8), "shot_noise", severity) / 255
    assert values.mean() == pytest.approx(level, rel=0.02)
    assert values.var() == pytest.approx(64 / 255 / photons, rel=0.05)


def test_impulse_noise_has_equally_many_black_and_white_values() -> None:
    made = corrupt(grey(100, 64, 8), "impulse_noise", 5)
    assert (made == 0).mean() == pytest.approx(0.135, abs=0.005)
    assert (made == 255).mean() == pytest.approx(0.135, abs=0.005)


def test_gaussian_blur_is_scipys() -> None:
    images = textured(64)
    sigma = 0.027 * 64
    for image, made in zip(images, corrupt(images, "gaussian_blur", 5), strict=True):
        expected = np.stack(
            [ndimage.gaussian_filter(image[..., c].astype(float), sigma, mode="nearest") for c in range(3)], -1
        )
        assert np.abs(made - expected).max() <= 0.51


@pytest.mark.parametrize("radius", [0.6, 1.0, 2.5, 10.0])
def test_the_disk_has_the_moments_of_a_disk(radius: float) -> None:
    kernel = corruptions.disk(radius)
    axis = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1)
    # a quarter of the squared radius, and a twelfth for the pixel
    assert (kernel.sum(0) * axis**2).sum() == pytest.approx(radius**2 / 4 + 1 / 12, abs=0.1 + 0.02 * radius**2)


def test_defocus_blur_spreads_a_point_over_its_disk() -> None:
    images = grey(0, 64, 1)
    images[0, 32, 32] = 255
    radius = 0.045 * 64
    spread = (corrupt(images, "defocus_blur", 5)[0, ..., 0] > 0).sum()
    assert spread == pytest.approx(np.pi * radius**2, rel=0.5)


def test_motion_blur_leaves_what_is_constant_along_it() -> None:
    images = grey(70)
    assert np.abs(corrupt(images, "motion_blur", 5).astype(int) - 70).max() <= 1
    point = grey(0, 64, 8)
    point[:, 32, 32] = 255
    made = corrupt(point, "motion_blur", 5)[..., 0].astype(float)
    assert made.sum() == pytest.approx(8 * 255, rel=0.1)
    rows, columns = np.nonzero(made[0])
    assert np.ptp(columns) >= np.ptp(rows)  # within 45 degrees of the horizontal


def test_brightness_raises_the_value_and_keeps_hue_and_saturation() -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(30, 110, (1, 8, 8, 3), np.uint8)
    made = corrupt(images, "brightness", 2)
    for old, new in zip(images.reshape(-1, 3) / 255, made.reshape(-1, 3) / 255, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*old)
        assert new == pytest.approx(colorsys.hsv_to_rgb(h, s, v + 0.2), abs=0.003)
    assert (corrupt(grey(0), "brightness", 1) == 26).all()  # black has no hue: it becomes grey


def test_contrast_scales_about_the_mean() -> None:
    images = textured(32)
    made = corrupt(images, "contrast", 2).astype(float)
    ratio = made.std(axis=(1, 2)) / images.std(axis=(1, 2))
    assert ratio == pytest.approx(np.full((6, 3), 0.3), rel=0.05)
    assert made.mean(axis=(1, 2)) == pytest.approx(images.mean(axis=(1, 2)), abs=0.5)


def test_pixelate_leaves_blocks_of_means() -> None:
    images = textured(64)
    made = corrupt(images, "pixelate", 5)  # 16 blocks of 4 pixels
    means = images.reshape(6, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    assert np.abs(made[:, ::4, ::4] - means).max() <= 1.01  # rounded once a direction
    assert (made.reshape(6, 16, 4, 16, 4, 3) == made[:, ::4, ::4][:, :, None, :, None]).all()


def test_jpeg_is_that_of_another_encoder() -> None:
    images = textured(64)
    made = corrupt(images, "jpeg", 4)
    for image, own in zip(images, made, strict=True):
        other = decode_jpeg(encode_jpeg(torch.tensor(image).permute(2, 0, 1), quality=10)).permute(1, 2, 0).numpy()
        assert np.abs(own.astype(int) - other).mean() < 1


def test_elastic_shifts_have_their_length() -> None:
    for k, severity in enumerate((1, 2, 3, 4, 5)):
        field = corruptions.displacement(64, severity - 1, np.random.default_rng(severity))
        assert np.sqrt((field**2).mean()) == pytest.approx(max(corruptions.SHIFT[k][0] * 64, corruptions.SHIFT[k][1]))


def test_an_elastic_map_moves_a_ramp_by_its_displacement(monkeypatch: pytest.MonkeyPatch) -> None:
    field = np.zeros((32, 32, 2))
    field[..., 0] = 2.0  # two pixels along x
    monkeypatch.setattr(corruptions, "displacement", lambda side, k, draw: field)
    ramp = np.tile((np.arange(32) * 6).astype(np.uint8)[None, :, None], (32, 1, 3))[None]
    made = corrupt(ramp, "elastic", 1).astype(int)
    assert np.abs(made[0, :, :29] - ramp[0, :, 2:31]).max() <= 1


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(KeyError):
        corrupt(grey(1), "fog", 1)
    for severity in (0, 6):
        with pytest.raises(IndexError):
            corrupt(grey(1), "jpeg", severity)
    assert corrupt(grey(1, n=0), "elastic", 1).shape == (0, 32, 32, 3)


# as numpy makes them of the published arange(1, 1.11, 0.01): rounding lets the end in at severity 1
PUBLISHED_ZOOMS = {
    1: [1 + 0.01 * k for k in range(12)],
    2: [1 + 0.01 * k for k in range(16)],
    5: [1 + 0.03 * k for k in range(11)],
}


@pytest.mark.parametrize("severity", PUBLISHED_ZOOMS)
def test_zoom_blur_averages_the_published_enlargements(severity: int) -> None:
    """(x + sum of clipped zooms) / (n + 1), as arXiv 1903.12261's code; zooms by Pillow's bilinear filter, compared
    inside."""
    images, factors = textured(96, 2), PUBLISHED_ZOOMS[severity]
    made = corrupt(images, "zoom_blur", severity).astype(float)
    for image, own in zip(images, made, strict=True):
        picture, zooms = Image.fromarray(image), []
        for factor in factors:
            half = 48 / factor
            box = (48 - half, 48 - half, 48 + half, 48 + half)
            zooms.append(np.asarray(picture.resize((96, 96), Image.Resampling.BILINEAR, box=box), float))
        expected = (image + np.sum(zooms, axis=0)) / (len(factors) + 1)
        assert np.abs(own - expected)[8:-8, 8:-8].max() <= 2.0
        assert np.abs(image - expected)[8:-8, 8:-8].max() > 4
