"""Pixels of a JPEG, whole or not at all: what libjpeg only warns of, and fills up with grey, is an error here."""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image

END_MARK, SCAN = b"\xff\xd9", b"\xff\xda"
LAYOUTS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


class UnknownLayout(Exception):
    """A JPEG whose components TurboJPEG cannot lay out, so that nothing tells whether it is whole."""


def load(data: bytes, image: Image.Image, notes: list[str]) -> Image.Image:
    """The first picture of JPEG bytes that Pillow opened as `image`, bit for bit as Pillow decodes it, in its mode.

    A file that lacks its end mark and nothing else is read, with a note. Inks of a CMYK image are 255 where the paper
    is covered. Raises ValueError with libjpeg's words for any warning, and UnknownLayout.
    """
    layout = LAYOUTS[image.mode]
    try:
        pixels = _pixels(data, layout)
    except ValueError as error:
        if "Premature end of JPEG" not in str(error) or data.count(SCAN) != 1:  # later scans may be missing
            raise
        try:
            pixels = _pixels(data + END_MARK, layout)
        except ValueError:
            raise error from None
        notes.append("no end mark")
    if layout == "GRAY":
        return Image.fromarray(pixels[..., 0])
    if layout == "CMYK" and "adobe" in image.info:  # Adobe's inks are stored inverted
        pixels = 255 - pixels
    return Image.fromarray(pixels, image.mode)


def _pixels(data: bytes, layout: str) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, layout)
    except ValueError as error:
        if "Could not determine" in str(error):
            raise UnknownLayout(str(error).partition(": ")[2]) from None
        raise
