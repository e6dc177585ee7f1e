"""Samples of 10 to 16 bits, read exactly: Pillow keeps only the high byte of most of them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, PLANAR_CONFIGURATION, SAMPLE_FORMAT = 258, 262, 281, 284, 339
LOW_BYTE = {
    "B": "L",
    "L": "B",
    "N": "B" if sys.byteorder == "little" else "L",
}  # raw mode of the low byte, by byte order
GREY, COLOUR = ("I;16", "I;12"), ("RGB;16", "RGBA;16", "RGBX;16")

for _key, _modes in {
    (TiffImagePlugin.II, 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (TiffImagePlugin.MM, 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (TiffImagePlugin.MM, 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (TiffImagePlugin.MM, 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
}.items():  # layouts that Pillow can unpack and does not list
    TiffImagePlugin.OPEN_INFO.setdefault(_key, _modes)


class UnknownRange(Exception):
    """Samples whose place or range cannot be told."""


@dataclass(frozen=True)
class Deep:
    """`colour` (H, W, 1 or 3) of 0 (black) to `top`; `alpha` (H, W, 1) of 0.0 (see-through) to 1.0, or None where all
    is opaque."""

    colour: NDArray[Any]
    top: int
    alpha: NDArray[np.float64] | None

    def eight_bits(self) -> NDArray[np.uint8]:
        """Colours scaled to 0..255, rounded to the nearest."""
        wide = self.colour.astype(np.int64)
        return ((wide * 255 + self.top // 2) // self.top).astype(np.uint8)


def raw_mode(image: Image.Image) -> str:
    """How Pillow is going to unpack an image that is opened and not yet loaded, such as "RGB;16B"."""
    tiles: Any = getattr(image, "tile", ())
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) else args)


def read(data: bytes, image: Image.Image, raw: str, turn: Callable[[Image.Image], Image.Image]) -> Deep | None:
    """The samples of an opened PNG or TIFF of the raw mode `raw`, turned upright; None where 8 bits hold them.

    Raises UnknownRange, and whatever Pillow raises for broken pixels.
    """
    tags: Any = getattr(image, "tag_v2", {})
    if max(tags.get(SAMPLE_FORMAT, (1,))) == 2:
        raise UnknownRange("signed integer pixels have no stated range; save them unsigned")
    bits = tags.get(BITS_PER_SAMPLE, (1,))
    if max(bits) > 8 and len(bits) > 1 and tags.get(PLANAR_CONFIGURATION, 1) == 2:
        raise UnknownRange("16-bit samples in separate planes; save them pixel by pixel")
    if not raw.startswith(GREY) and ";16" not in raw:
        return None
    high = raw[-1]
    values: NDArray[Any]
    if raw.startswith(GREY):
        image.load()
        values = np.asarray(turn(image)).astype(np.uint16)[..., None]
    elif raw.startswith("LA;16"):
        pairs = np.asarray(turn(_reopened(data, image, "RGBA"))).astype(np.uint16)
        values = pairs[..., 0::2] << 8 | pairs[..., 1::2]
    elif raw.startswith(COLOUR):
        planes = [_reopened(data, image, raw[:-1] + order) for order in (high, LOW_BYTE[high])]
        upper, lower = (np.asarray(turn(plane)).astype(np.uint16) for plane in planes)
        values = upper << 8 | lower
    elif _declared_top(tags):
        raise UnknownRange("MaxSampleValue of samples that are read as 8 bits; save them as RGB")
    else:
        return None
    return _deep(values, tags, image.info.get("transparency"))


def _deep(values: NDArray[Any], tags: Any, transparent: Any) -> Deep:
    count = values.shape[-1] - (values.shape[-1] + 1) % 2  # colours: 1 of 1 or 2 channels, 3 of 3 or 4
    colour, top = values[..., :count], (1 << max(tags.get(BITS_PER_SAMPLE, (16,)))) - 1
    declared = _declared_top(tags)
    if declared and colour.max() <= declared:
        top = declared
    alpha = values[..., count:] / 65535 if values.shape[-1] > count else None
    if transparent is not None:
        alpha = (colour != np.array(transparent)).any(-1, keepdims=True).astype(float)
    if tags and tags.get(PHOTOMETRIC, 0) == 0:
        colour = top - colour
    return Deep(colour, top, alpha)


def _declared_top(tags: Any) -> int | None:
    """MaxSampleValue where it tells how many bits are used (2^n - 1); another value is a statistic of the picture and
    no range."""
    value = tags.get(MAX_SAMPLE_VALUE, 0)
    top = int(max(value) if isinstance(value, tuple) else value)
    return top if 255 <= top < 65535 and top & (top + 1) == 0 else None


def _reopened(data: bytes, image: Image.Image, raw: str) -> Image.Image:
    """The image loaded by another raw mode."""
    again: Any = Image.open(io.BytesIO(data), formats=(str(image.format),))
    again.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in again.tile
    ]
    again.load()
    return again
