"""Encoded files against torchvision's decoders and the formats' own headers."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from engine.images.encode import encode
from tests.support.images import picture


def decoded(data: bytes) -> np.ndarray:
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_image(raw).permute(1, 2, 0).numpy()


def pictures(*sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [picture(rng, size, size) for size in sizes]


def chroma(data: bytes) -> tuple[int, int]:
    """Horizontal and vertical sampling factors of the first component, from the JPEG's frame header."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return data[at + 11] >> 4, data[at + 11] & 15


@pytest.mark.parametrize("size", [8, 32, 200])
def test_png_keeps_every_pixel(size: int) -> None:
    pixels = pictures(size)[0]
    data = encode(pixels, "png", 90)
    assert data.startswith(b"\x89PNG")
    assert np.array_equal(decoded(data), pixels)


@pytest.mark.parametrize(("format", "start"), [("jpg", b"\xff\xd8\xff"), ("webp", b"RIFF")])
def test_lossy_formats_come_near_and_follow_quality(format: str, start: bytes) -> None:
    pixels = pictures(128)[0]
    errors, sizes = [], []
    for quality in (30, 70, 95):
        data = encode(pixels, format, quality)
        assert data.startswith(start)
        errors.append(np.abs(decoded(data).astype(float) - pixels).mean())
        sizes.append(len(data))
    assert errors[0] > errors[1] > errors[2]
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[2] < 3


def test_small_jpegs_keep_full_colour_resolution() -> None:
    small, large = pictures(64, 72)
    assert chroma(encode(small, "jpg", 95)) == (1, 1)
    assert chroma(encode(large, "jpg", 95)) == (2, 2)
    checks = np.zeros((64, 64, 3), np.uint8)
    checks[::2], checks[1::2] = (255, 0, 0), (0, 0, 255)  # colour that changes in every row
    assert np.abs(decoded(encode(checks, "jpg", 95)).astype(float) - checks).mean() < 6
    assert np.abs(np.asarray(Image.open(io.BytesIO(encode(checks, "jpg", 95)))).astype(float) - checks).mean() < 6


def test_bytes_are_the_same_in_another_process_and_for_any_memory_layout() -> None:
    pixels = pictures(40)[0]
    script = (
        "import hashlib, sys, numpy as np; from engine.images.encode import encode; from "
        "tests.support.images import picture;"
        "p = picture(np.random.default_rng(3), 40, 40);"
        "print(*[hashlib.sha256(encode(p, f, 90)).hexdigest() for f in ('png', 'jpg', 'webp')])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    import hashlib

    for view in (pixels, np.asfortranarray(pixels), np.repeat(pixels, 2, 1)[:, ::2]):
        assert [hashlib.sha256(encode(view, f, 90)).hexdigest() for f in ("png", "jpg", "webp")] == out


def test_other_shapes_types_and_formats_are_refused() -> None:
    pixels = pictures(16)[0]
    for wrong in (pixels[..., 0], pixels.astype(float), pixels[..., :2], pixels[None]):
        with pytest.raises(ValueError, match="uint8"):
            encode(wrong, "png", 90)
    with pytest.raises(KeyError):
        encode(pixels, "tiff", 90)
