"""Pixels to image file bytes, the same bytes every time."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

FULL_CHROMA_SIZE = 64  # up to this side half-resolution colour would blur whole features: 4:4:4
PNG_LEVEL = 6  # level 1 takes a third of the time and 10 % more bytes; encoding runs beside the denoising, bytes stay


def _png(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _jpg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    subsampling = "444" if max(pixels.shape[:2]) <= FULL_CHROMA_SIZE else "420"
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", subsampling, fastdct=False))


def _webp(pixels: NDArray[np.uint8], quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


ENCODERS: dict[str, Callable[[NDArray[np.uint8], int], bytes]] = {"png": _png, "jpg": _jpg, "webp": _webp}


def encode(pixels: NDArray[np.uint8], format: str, quality: int) -> bytes:
    """Encode (H, W, 3) uint8 sRGB pixels as "png" (lossless), "jpg" or "webp" (lossy, `quality` 1 to 100).

    The bytes depend on the pixels and the library versions only. JPEG keeps full colour resolution (4:4:4) up to 64
    pixels a side and halves it (4:2:0) above. Raises KeyError for another format, ValueError for pixels of another
    shape or type.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"pixels must be (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    return ENCODERS[format](np.ascontiguousarray(pixels), quality)
