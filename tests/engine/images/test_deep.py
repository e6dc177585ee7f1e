"""Samples of 12 and 16 bits, and transparent grey, against values that follow from the formats' specifications."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from engine.images.decode import BadImage, decode
from engine.spec.recipe import ImagesSpec
from tests.support.images import png, png_chunk, tiff

SPEC = ImagesSpec(size=32, background="#3060c0")
BEHIND = np.array([0x30, 0x60, 0xC0])
RNG = np.random.default_rng(3)
MAX_SAMPLE_VALUE, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 281, 284, 339


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples packed from the highest bit on, each row from a new byte."""
    lines = ["".join(f"{v:0{bits}b}" for v in row) for row in values.tolist()]
    return b"".join(
        int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8), "big") for line in lines
    )


def shown(values: np.ndarray, top: int) -> np.ndarray:
    return np.floor(values * (255 / top) + 0.5)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_any_depth(bits: int) -> None:
    top = (1 << bits) - 1
    values = RNG.integers(0, top + 1, (12, 9))
    key = int(values[5, 5])
    made = decode(png(9, 12, bits, 0, packed(values, bits), png_chunk(b"tRNS", struct.pack(">H", key))), SPEC).pixels
    assert np.array_equal(made, np.where((values == key)[..., None], BEHIND, shown(values, top)[..., None]))


def test_transparent_colour_of_sixteen_bits_is_one_colour_only() -> None:
    values = RNG.integers(0, 65536, (12, 9, 3))
    values[5, 6] = values[5, 5] ^ 1  # the same high bytes
    key = values[5, 5].tolist()
    data = png(9, 12, 16, 2, values.astype(">u2").tobytes(), png_chunk(b"tRNS", struct.pack(">HHH", *key)))
    expected = np.where((values == key).all(-1, keepdims=True), BEHIND, shown(values, 65535))
    assert np.array_equal(decode(data, SPEC).pixels, expected)


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_alpha_of_sixteen_bits(colour_type: int, channels: int) -> None:
    values = RNG.integers(0, 65536, (30, 40, channels))
    alpha = values[..., -1:] / 65535
    made = decode(png(40, 30, 16, colour_type, values.astype(">u2").tobytes()), SPEC).pixels
    assert np.abs(made - (values[..., :-1] / 257 * alpha + BEHIND * (1 - alpha))).max() <= 0.51


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_sixteen_bit_grey_tiff(photometric: int, order: str, compression: str) -> None:
    values = RNG.integers(0, 65536, (11, 13))
    if compression == "raw":
        data = tiff(13, 11, (16,), values.astype("<u2").tobytes(), photometric)
    else:
        buffer = io.BytesIO()
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[262] = photometric
        Image.fromarray(values.astype(np.uint16)).save(buffer, "TIFF", compression=compression, tiffinfo=tags)
        data = buffer.getvalue()
        with Image.open(buffer) as written:
            photometric = written.tag_v2[262]
    if order == ">" and compression == "raw":
        data = _big_endian(data, values)
    expected = shown(values if photometric else 65535 - values, 65535)
    assert np.array_equal(decode(data, SPEC).pixels, np.repeat(expected[..., None], 3, -1))


def _big_endian(data: bytes, values: np.ndarray) -> bytes:
    """A TIFF of `tiff` with its numbers the other way round."""
    count = struct.unpack("<H", data[8:10])[0]
    out = b"MM\x00*" + struct.pack(">IH", 8, count)
    for i in range(count):
        tag, kind, number, value = struct.unpack("<HHII", data[10 + 12 * i : 22 + 12 * i])
        out += struct.pack(">HHI", tag, kind, number) + struct.pack(
            ">HH" if kind == 3 else ">I", *((value, 0) if kind == 3 else (value,))
        )
    return out + bytes(4) + values.astype(">u2").tobytes()


@pytest.mark.parametrize("photometric", [0, 1])
def test_twelve_bit_tiff_black_or_white_first(photometric: int) -> None:
    values = RNG.integers(0, 4096, (10, 13))
    made = decode(tiff(13, 10, (12,), packed(values, 12), photometric), SPEC).pixels
    expected = shown(values if photometric else 4095 - values, 4095)
    assert np.array_equal(made, np.repeat(expected[..., None], 3, -1))


@pytest.mark.parametrize("channels", [1, 3])
def test_maximum_sample_value_is_a_range_only_where_it_can_be_one(channels: int) -> None:
    bits, photometric = (16,) * channels, 1 if channels == 1 else 2
    values = RNG.integers(0, 4096, (10, 12, channels))
    raw = values.astype("<u2").tobytes()
    for declared, top in ((4095, 4095), (4001, 65535), (1023, 65535), (65535, 65535)):
        made = decode(tiff(12, 10, bits, raw, photometric, ((MAX_SAMPLE_VALUE, declared),)), SPEC).pixels
        assert np.array_equal(made, np.broadcast_to(shown(values, top), (10, 12, 3))), declared


def test_layouts_without_a_known_range_are_refused() -> None:
    raw = bytes(10 * 12 * 6)
    for bits, photometric, tag, value in (
        ((16, 16, 16), 2, PLANAR_CONFIGURATION, 2),
        ((8,), 1, SAMPLE_FORMAT, 2),
        ((16, 16, 16, 16), 5, MAX_SAMPLE_VALUE, 4095),
    ):
        with pytest.raises(BadImage) as caught:
            decode(tiff(12, 10, bits, raw + bytes(240), photometric, ((tag, value),)), SPEC)
        assert caught.value.reason == "unknown_range"
        assert "save them" in caught.value.detail
