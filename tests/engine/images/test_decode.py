"""Decoding against numpy, torchvision and closed forms: what a user expects to see, whatever the file's mode."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision.io
import torchvision.transforms.v2.functional as tvf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from torchvision.io import ImageReadMode

from engine.images.decode import BadImage, decode, fit
from engine.spec.recipe import ImagesSpec
from tests.support.images import icc_profile, picture, png, png16, png_chunk, save, tiff, with_orientation

SPEC = ImagesSpec(size=32)
RNG = np.random.default_rng(7)


def noise(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF's table says: where row 0 and column 0 of the stored image are to be shown."""
    flips = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a[::-1].transpose(1, 0, 2),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a[:, ::-1].transpose(1, 0, 2),
    }
    return flips[orientation](pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_applied(format: str, orientation: int) -> None:
    stored = noise(20, 31, 3)
    options = {"lossless": True} if format == "WEBP" else {}
    made = decode(with_orientation(Image.fromarray(stored), format, orientation, **options), SPEC)
    assert np.array_equal(made.pixels, turned(stored, orientation))
    assert any("orientation" in note for note in made.notes) == (orientation != 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_orientation_as_torchvision_sees_it(orientation: int) -> None:
    data = with_orientation(Image.fromarray(picture(RNG, 40, 25)), "JPEG", orientation, quality=95)
    raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    expected = torchvision.io.decode_jpeg(raw, ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).numpy()
    made = decode(data, SPEC).pixels
    assert made.shape == expected.shape
    assert np.abs(made.astype(int) - expected).max() <= 3


def test_plain_formats_keep_their_pixels() -> None:
    stored = noise(17, 23, 3)
    for format, options in (
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ):
        made = decode(save(Image.fromarray(stored), format, **options), SPEC)
        assert np.array_equal(made.pixels, stored)
        assert (made.format, made.mode, made.notes) == (format, "RGB", ())


def test_grey_one_bit_and_palette() -> None:
    grey, bits = noise(12, 9), noise(12, 9) > 127
    assert np.array_equal(decode(save(Image.fromarray(grey), "PNG"), SPEC).pixels, np.repeat(grey[..., None], 3, -1))
    made = decode(save(Image.fromarray(bits), "PNG"), SPEC)
    assert made.mode == "1"
    assert np.array_equal(made.pixels, np.repeat(np.where(bits, 255, 0)[..., None], 3, -1))
    index, palette = noise(12, 9) % 8, noise(8, 3)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    for format in ("PNG", "GIF", "BMP"):
        assert np.array_equal(decode(save(image, format), SPEC).pixels, palette[index])


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 40 * 11).round().astype(np.uint16).reshape(11, 40)
    expected = np.floor(ramp.astype(np.float64) * 255 / 65535 + 0.5)
    for data in (png16(ramp), tiff(40, 11, (16,), ramp.astype("<u2").tobytes())):
        made = decode(data, SPEC)
        assert made.mode == "I;16"
        assert np.abs(made.pixels - expected[..., None]).max() <= 0.51
    colour = RNG.integers(0, 65536, (11, 40, 3)).astype(np.uint16)
    for data in (png16(colour), tiff(40, 11, (16, 16, 16), colour.astype("<u2").tobytes(), 2)):
        assert np.abs(decode(data, SPEC).pixels - colour * (255 / 65535)).max() <= 1


def test_twelve_bit_tiff_uses_its_whole_range() -> None:
    values = RNG.integers(0, 4096, (10, 16))
    values[0, :2] = 0, 4095
    packed = bytearray()
    for a, b in values.reshape(-1, 2).tolist():
        packed += bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255])
    made = decode(tiff(16, 10, (12,), bytes(packed)), SPEC).pixels
    assert np.abs(made - values[..., None] * (255 / 4095)).max() <= 0.51


@pytest.mark.parametrize("background", ["#ffffff", "#000000", "#3060c0"])
def test_alpha_is_composited_over_the_background(background: str) -> None:
    spec = ImagesSpec(size=32, background=background)
    behind = np.array([int(background[i : i + 2], 16) for i in (1, 3, 5)], float)
    rgba = noise(14, 15, 4)
    alpha = rgba[..., 3:] / 255
    made = decode(save(Image.fromarray(rgba), "PNG"), spec)
    assert np.abs(made.pixels - (rgba[..., :3] * alpha + behind * (1 - alpha))).max() <= 1
    assert background in made.notes[0]
    la = noise(14, 15, 2)
    made = decode(save(Image.fromarray(la, "LA"), "PNG"), spec)
    alpha = la[..., 1:] / 255
    assert np.abs(made.pixels - (la[..., :1] * alpha + behind * (1 - alpha))).max() <= 1


def test_transparent_colours_show_the_background() -> None:
    index, palette = noise(12, 9) % 4, noise(4, 3)
    image = Image.fromarray(index, "P")
    image.putpalette(palette.tobytes())
    palette[2] = 255
    for format in ("PNG", "GIF"):
        assert np.array_equal(decode(save(image, format, transparency=2), SPEC).pixels, palette[index])
    colour = noise(10, 10, 3)
    key = colour[4, 5].copy()
    data = png(10, 10, 8, 2, colour.tobytes(), png_chunk(b"tRNS", struct.pack(">HHH", *key.tolist())))
    expected = np.where((colour == key).all(-1, keepdims=True), 255, colour)
    assert np.array_equal(decode(data, SPEC).pixels, expected)


CMYK = np.array([[(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 255, 127)]], np.uint8)
CMYK_RGB = np.array([(255, 255, 255), (0, 255, 255), (255, 0, 0), (0, 0, 0), (128, 128, 0)])


def _cmyk_image() -> Image.Image:
    return Image.fromarray(np.repeat(np.repeat(CMYK, 16, 0), 16, 1), "CMYK")


def test_cmyk_tiff_is_one_minus_ink() -> None:
    made = decode(save(_cmyk_image(), "TIFF"), SPEC)
    assert made.mode == "CMYK"
    assert np.abs(made.pixels[8, 8::16].astype(int) - CMYK_RGB).max() <= 1


def test_cmyk_jpegs_of_adobe_and_of_others() -> None:
    adobe = save(_cmyk_image(), "JPEG", quality=100)
    assert np.abs(decode(adobe, SPEC).pixels[8, 8::16].astype(int) - CMYK_RGB).max() <= 4
    start = adobe.index(b"\xff\xee\x00\x0eAdobe")
    plain = save(Image.fromarray(255 - np.asarray(_cmyk_image()), "CMYK"), "JPEG", quality=100)
    start = plain.index(b"\xff\xee\x00\x0eAdobe")
    plain = plain[:start] + plain[start + 16 :]  # without Adobe's marker inks are stored as they are
    assert np.abs(decode(plain, SPEC).pixels[8, 8::16].astype(int) - CMYK_RGB).max() <= 4


ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])  # D50
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])  # D50


def _expected_srgb(pixels: np.ndarray) -> np.ndarray:
    linear = (pixels / 255) ** 2.2
    out = np.clip(linear @ ADOBE_RGB.T @ np.linalg.inv(SRGB).T, 0, 1)
    return 255 * np.where(out <= 0.0031308, 12.92 * out, 1.055 * out ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_wide_gamut_colours_become_srgb(format: str) -> None:
    pixels = RNG.integers(40, 216, (16, 16, 3), dtype=np.uint8)
    data = save(Image.fromarray(pixels), format, icc_profile=icc_profile(ADOBE_RGB, 2.2))
    made = decode(data, SPEC)
    expected = _expected_srgb(pixels)
    assert np.abs(expected - pixels).max() > 15
    assert np.abs(made.pixels - expected).max() <= 3
    assert "converted to sRGB" in made.notes[0]


def test_srgb_and_broken_profiles_change_nothing() -> None:
    pixels = noise(9, 9, 3)
    for icc, note in (
        (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), False),
        (b"no profile", True),
        (icc_profile(SRGB, 2.2)[:90], True),
    ):
        made = decode(save(Image.fromarray(pixels), "PNG", icc_profile=icc), SPEC)
        assert np.array_equal(made.pixels, pixels)
        assert bool(made.notes) == note


@pytest.mark.parametrize(("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})])
def test_first_frame_of_several(format: str, options: dict[str, object]) -> None:
    frames = [Image.fromarray(np.full((12, 10, 3), v, np.uint8)) for v in (40, 140, 240)]
    made = decode(save(frames[0], format, save_all=True, append_images=frames[1:], **options), SPEC)
    assert (made.pixels == 40).all()
    assert made.notes == ("first of 3 frames",)


@pytest.mark.parametrize(
    ("data", "reason", "word"),
    [
        (b"", "empty_file", "no bytes"),
        (b"hello there, I am no picture", "not_an_image", "text"),
        ("schön wär's".encode() * 200, "not_an_image", "text"),
        (b"<html><body>404</body></html>", "not_an_image", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not_an_image", "git lfs pull"),
        (b'<?xml version="1.0"?><svg width="1"/>', "format_not_allowed", "SVG"),
        (b"%PDF-1.4\n%\xe2\xe3", "format_not_allowed", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format_not_allowed", "EPS"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(40), "format_not_allowed", "HEIC"),
        (b"\x00\x00\x00\x18ftypavif" + bytes(40), "format_not_allowed", "AVIF"),
        (save(Image.new("RGB", (16, 16)), "ICO"), "format_not_allowed", "ICO"),
        (save(Image.new("RGB", (16, 16)), "JPEG2000"), "format_not_allowed", "JPEG 2000"),
        (save(Image.new("RGB", (16, 16)), "EPS"), "format_not_allowed", "EPS"),
        (bytes(5000), "not_an_image", "zero bytes"),
        (bytes(range(256)), "not_an_image", "no known"),
        (save(Image.new("F", (16, 16)), "TIFF"), "float_image", "floating"),
        (save(Image.new("I", (16, 16)), "TIFF"), "wide_integer_image", "32-bit"),
        (save(Image.new("RGB", (1, 1)), "PNG"), "tiny", "1 x 1"),
        (save(Image.new("L", (1, 5000)), "PNG"), "tiny", "1 x 5000"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_used_says_why(data: bytes, reason: str, word: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data, SPEC)
    assert caught.value.reason == reason
    assert word in caught.value.detail


def test_bombs_are_refused_from_the_header() -> None:
    # No pixel data follows these headers, so that "truncated" would mean that loading was tried.
    for side in (7100, 30_000, 2**31 - 1):
        with pytest.raises(BadImage) as caught:
            decode(png(side, side, 1, 0, b""), SPEC)
        assert caught.value.reason == "bomb"
    real = save(Image.new("1", (12_000, 12_000)), "PNG")
    assert len(real) < 200_000
    with pytest.raises(BadImage, match="bomb"):
        decode(real, SPEC)
    text = png(16, 16, 8, 0, bytes(256), png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000))))
    with pytest.raises(BadImage, match="undecodable"):
        decode(text, SPEC)


def test_size_limits_follow_the_recipe() -> None:
    data = save(Image.fromarray(noise(64, 64, 3)), "PNG")
    with pytest.raises(BadImage, match="too_large_file"):
        decode(data, ImagesSpec(max_bytes=len(data) - 1))
    with pytest.raises(BadImage, match="bomb"):
        decode(data, ImagesSpec(max_pixels=64 * 64 - 1))
    assert decode(data, ImagesSpec(max_bytes=len(data), max_pixels=64 * 64)).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("cut", ["half", "tail", "header"])
def test_truncated_files_are_never_filled_up(format: str, cut: str) -> None:
    data = save(Image.fromarray(picture(RNG, 90, 80)), format)
    end = {"half": len(data) // 2, "tail": len(data) - 10, "header": 20}[cut]
    with pytest.raises(BadImage) as caught:
        decode(data[:end], SPEC)
    assert caught.value.reason in ("truncated", "undecodable")
    if cut == "half" and format in ("JPEG", "PNG", "WEBP", "BMP"):
        assert caught.value.reason == "truncated"


def test_a_bad_checksum_is_noticed() -> None:
    data = bytearray(save(Image.fromarray(noise(30, 30, 3)), "PNG"))
    data[data.index(b"IDAT") + 40] ^= 0xFF
    with pytest.raises(BadImage) as caught:
        decode(bytes(data), SPEC)
    assert (caught.value.reason, caught.value.detail) == ("undecodable", "wrong checksum in IDAT")


SEEDS = [save(Image.fromarray(picture(RNG, 24, 18)), f) for f in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")] + [
    with_orientation(Image.fromarray(picture(RNG, 24, 18)), "JPEG", 6)
]


@settings(max_examples=300, deadline=2000, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    st.integers(0, 4000),
)
def test_flipped_and_cut_bytes_give_pixels_or_a_reason(data: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    spoiled = bytearray(data)
    for at, value in flips:
        spoiled[at % len(spoiled)] = value
    try:
        made = decode(bytes(spoiled[: cut if cut % 3 == 0 else None]), SPEC)
    except BadImage:
        return
    assert made.pixels.dtype == np.uint8
    assert made.pixels.ndim == 3
    assert made.pixels.shape[2] == 3


def test_first_frame_survives_a_broken_exif_block() -> None:
    image = Image.fromarray(noise(10, 12, 3))
    data = save(image, "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert np.array_equal(decode(data, SPEC).pixels, np.asarray(image))


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    return tvf.resize(tensor, [height, width], tvf.InterpolationMode.BICUBIC, antialias=True).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("height", "width"), [(100, 60), (61, 100), (20, 33), (32, 32), (9, 8)])
def test_fit_resamples_as_torchvision_does(height: int, width: int) -> None:
    pixels = picture(RNG, width, height)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = _resized(pixels[top : top + side, left : left + side], 32, 32)
    stretch = _resized(pixels, 32, 32)
    for how, expected in (("crop", crop), ("stretch", stretch)):
        made = fit(pixels, ImagesSpec(size=32, fit=how))
        assert made.shape == (32, 32, 3)
        assert made.flags.writeable
        assert np.abs(made.astype(int) - expected).max() <= 2


def test_pad_keeps_the_whole_image_and_shows_the_background() -> None:
    pixels = picture(RNG, 64, 32)
    made = fit(pixels, ImagesSpec(size=32, fit="pad", background="#102030"))
    assert (made[:8] == (0x10, 0x20, 0x30)).all()
    assert (made[24:] == (0x10, 0x20, 0x30)).all()
    assert np.abs(made[8:24].astype(int) - _resized(pixels, 16, 32)).max() <= 2


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    pixels = noise(32, 32, 3)
    for how in ("crop", "pad", "stretch"):
        assert np.array_equal(fit(pixels, ImagesSpec(size=32, fit=how)), pixels)
    wide = noise(32, 35, 3)
    assert np.array_equal(fit(wide, ImagesSpec(size=32)), wide[:, 1:33])


def test_mpo_of_phones_is_a_jpeg() -> None:
    buffer = io.BytesIO()
    first = Image.fromarray(picture(RNG, 40, 30))
    first.save(buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30))])
    made = decode(buffer.getvalue(), SPEC)
    assert made.format == "JPEG"
    raw = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    expected = torchvision.io.decode_jpeg(raw, ImageReadMode.RGB).permute(1, 2, 0).numpy()
    assert np.abs(made.pixels.astype(int) - expected).max() <= 3
