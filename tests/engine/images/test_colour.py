"""Profiles by what they do, whatever they are called, and transparency that a file does not mean, against closed
forms."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from engine.images.decode import decode
from engine.spec.recipe import ImagesSpec
from tests.support.images import icc_profile, save

SPEC = ImagesSpec(size=32)
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # D50
RNG = np.random.default_rng(11)


def encoded(linear: np.ndarray) -> np.ndarray:
    """The sRGB curve of IEC 61966-2-1, as levels."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_a_linear_profile_named_srgb_is_linear() -> None:
    pixels = RNG.integers(20, 236, (16, 16, 3), dtype=np.uint8)
    made = decode(
        save(Image.fromarray(pixels), "PNG", icc_profile=icc_profile(SRGB, 1.0, "sRGB-elle-V2-g10.icc")), SPEC
    )
    assert np.abs(made.pixels - encoded(pixels / 255)).max() <= 1
    assert "converted to sRGB" in made.notes[0]


def test_srgb_by_another_name_changes_nothing() -> None:
    pixels = RNG.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = profile.replace("sRGB built-in".encode("utf-16-be"), "Monitor No 12".encode("utf-16-be"))
    assert renamed != profile
    made = decode(save(Image.fromarray(pixels), "PNG", icc_profile=renamed), SPEC)
    assert np.array_equal(made.pixels, pixels)
    assert made.notes == ()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_a_grey_profile_fits_every_grey_image(mode: str) -> None:
    grey = RNG.integers(20, 236, (16, 16), dtype=np.uint8)
    stored = grey.astype(np.uint16) * 257 if mode == "I;16" else grey
    image = Image.fromarray(stored)
    if mode == "1":
        image, grey = Image.fromarray(grey > 127), np.where(grey > 127, 255, 0)
    made = decode(
        save(image if mode == "I;16" else image.convert(mode), "PNG", icc_profile=icc_profile(None, 1.0)), SPEC
    )
    assert np.abs(made.pixels - encoded(grey / 255)[..., None]).max() <= 1
    assert "unusable ICC profile ignored" not in made.notes


@pytest.mark.parametrize(("alpha", "shown"), [(0, False), (255, False), (40, True)])
def test_an_alpha_of_zero_everywhere_in_a_bmp_means_none(alpha: int, shown: bool) -> None:
    pixels = RNG.integers(0, 256, (9, 10, 3), dtype=np.uint8)
    rows = np.dstack([pixels[::-1, :, ::-1], np.full((9, 10), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(64)
    header = struct.pack("<IiiHHIIiiII", 124, 10, 9, 1, 32, 3, len(rows), 2835, 2835, 0, 0) + masks
    made = decode(b"BM" + struct.pack("<IHHI", 138 + len(rows), 0, 0, 138) + header + rows, SPEC).pixels
    expected = pixels * (alpha / 255) + 255 * (1 - alpha / 255) if shown else pixels
    assert np.abs(made - expected).max() <= 1


def test_what_a_gif_frame_leaves_free_is_transparent() -> None:
    frame = Image.fromarray(np.full((8, 9), 1, np.uint8), "P")
    frame.putpalette([10, 20, 200, 200, 30, 40] + [0] * 762)
    raw = bytearray(save(frame, "GIF"))
    raw[6:10] = struct.pack("<HH", 16, 20)  # a larger canvas
    expected = np.full((20, 16, 3), 255)
    with Image.open(io.BytesIO(raw)) as image:
        expected[:8, :9] = image.convert("RGB").getpixel((0, 0))
    assert np.array_equal(decode(bytes(raw), SPEC).pixels, expected)
    assert tuple(expected[0, 0]) == (200, 30, 40)
