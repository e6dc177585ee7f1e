"""Bytes in, upright sRGB pixels out, or the reason why not; and the square that the generator is trained on."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from engine.images.formats import explain, is_text
from engine.spec.models import ImagesSpec

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
MIN_SIDE = 8  # the smallest image that a recipe can ask for; less is a tracking pixel or a rule, not a picture
TRUNCATION_WORDS = ("truncated", "unexpected end", "not enough", "unrecognized data stream contents")

Pixels = NDArray[np.uint8]

# What Pillow warns of, `decode` turns into a reason or a note itself: sizes against images.max_pixels before a pixel is loaded,
# checksums, EXIF. Filters are set once because `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")


class BadImage(Exception):
    """A real image that cannot be used: `reason` is a short slug that is counted, `detail` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """An image at its native size: `pixels` (H, W, 3) uint8 in sRGB, upright, opaque; `mode` and `format` as they were stored."""

    pixels: Pixels
    format: str
    mode: str
    notes: tuple[str, ...]


def decode(data: bytes, spec: ImagesSpec) -> Decoded:
    """Decode untrusted bytes by their content, whatever the file was called.

    EXIF orientation is applied, ICC colours become sRGB, alpha is composited over `spec.background`, 16 bits are scaled to 8,
    and of several frames or pages the first is taken. Raises BadImage with a reason.
    """
    if not data:
        raise BadImage("empty_file", "no bytes")
    if len(data) > spec.max_bytes:
        raise BadImage("too_large_file", f"{len(data):,} bytes, images.max_bytes is {spec.max_bytes:,}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, spec)
            if image.format == "PNG":
                _check_png(data)
            return _upright_srgb(image, spec)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage("bomb", "more pixels than Pillow agrees to open (about 179 million)") from None
    except UnidentifiedImageError:
        raise BadImage(*explain(data)) from None
    except MemoryError:
        raise BadImage("bomb", "does not fit into memory") from None
    except Exception as error:  # decoders raise whatever a broken byte leads them to: the file is bad, the run goes on
        raise _broken(data, error) from None


def _broken(data: bytes, error: Exception) -> BadImage:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    if is_text(data):
        return BadImage(*explain(data))
    truncated = any(word in text.lower() for word in TRUNCATION_WORDS) or explain(data)[0] == "truncated"
    return BadImage("truncated" if truncated else "undecodable", text)


def _check_header(image: Image.Image, spec: ImagesSpec) -> None:
    width, height = image.size
    if width * height > spec.max_pixels:
        raise BadImage("bomb", f"{width} x {height} pixels, images.max_pixels is {spec.max_pixels:,}")
    if min(width, height) < MIN_SIDE:
        raise BadImage("tiny", f"{width} x {height} pixels, the shorter side must have {MIN_SIDE}")
    if image.mode == "F":
        raise BadImage("float_image", "floating-point pixels have no stated range; save them as 8 or 16 bits")
    if image.mode == "I" and image.format != "PNG":
        raise BadImage("wide_integer_image", "32-bit integer pixels have no stated range; save them as 8 or 16 bits")
    if image.mode == "LAB":
        raise BadImage("unsupported_mode", "CIELAB pixels; save them as RGB")


def _check_png(data: bytes) -> None:
    """Compare the checksums of the chunks that make the picture, up to the end mark; Pillow does not read all of them."""
    position = 8
    while position + 12 <= len(data):
        size, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        end = position + 12 + size
        if end > len(data):
            break
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[position + 4 : end - 4]) != int.from_bytes(
            data[end - 4 : end]
        ):
            raise BadImage("undecodable", f"wrong checksum in {kind.decode('latin-1')}")
        if kind == b"IEND":
            return
        position = end
    raise BadImage("truncated", "the PNG has no end mark")


def _upright_srgb(image: Image.Image, spec: ImagesSpec) -> Decoded:
    stored_mode, stored_format, notes = image.mode, image.format or "", _frames(image)
    image.seek(0)
    orientation = _orientation(image)  # before loading: Pillow turns a TIFF itself, and forgets the tag
    image.load()
    upright = _upright(image, orientation, notes)
    if upright.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        upright = Image.fromarray(255 - np.asarray(upright), "CMYK")  # Pillow inverts every CMYK JPEG; only Adobe's are
    if upright.mode.startswith("I"):
        upright = Image.fromarray(_eight_bits(np.asarray(upright), _bits(image)))
    rgb = _composite(upright, image.info.get("icc_profile"), spec.background, notes)
    pixels = np.ascontiguousarray(np.asarray(rgb, dtype=np.uint8))
    return Decoded(pixels, "JPEG" if stored_format == "MPO" else stored_format, stored_mode, tuple(notes))


def _frames(image: Image.Image) -> list[str]:
    try:
        count = int(getattr(image, "n_frames", 1))
    except Exception:  # a later frame is broken: the first may still be whole
        return ["later frames are broken, first used"]
    return [f"first of {count} frames"] if count > 1 else []


def _orientation(image: Image.Image) -> int | None:
    """The EXIF orientation 1..8; None where the EXIF block cannot be read: it is untrusted too, and no reason to lose the picture."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image, orientation: int | None, notes: list[str]) -> Image.Image:
    if orientation is None:
        notes.append("broken EXIF ignored")
        return image
    if orientation == 1:
        return image
    notes.append(f"EXIF orientation {orientation} applied")
    return image if image.format == "TIFF" else ImageOps.exif_transpose(image)


def _bits(image: Image.Image) -> int:
    """Bits a sample of an `I;16` image: 16, or what the TIFF says (12 is common in cameras and scanners)."""
    tags: Any = getattr(image, "tag_v2", {})
    return int(tags.get(258, (16,))[0]) if image.format == "TIFF" else 16


def _eight_bits(values: NDArray[Any], bits: int) -> Pixels:
    """Scale 0..2^bits - 1 to 0..255, rounded to the nearest."""
    top = (1 << bits) - 1
    wide = np.clip(values.astype(np.int64), 0, top)
    return ((wide * 255 + top // 2) // top).astype(np.uint8)


def _composite(image: Image.Image, icc: bytes | None, background: str, notes: list[str]) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*ImageColor.getrgb(background)[:3], 255))
        colour = _to_srgb(layer.convert("RGB"), icc, notes)
        colour.putalpha(layer.getchannel("A"))
        canvas.alpha_composite(colour)
        notes.append(f"transparency over {background}")
        return canvas.convert("RGB")
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    return _to_srgb(image, icc, notes)


def _to_srgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """RGB in sRGB; a profile that is broken or made for other channels is ignored, and a note says so."""
    if not icc:
        return image.convert("RGB")
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(icc))
        name = (ImageCms.getProfileDescription(source) or "").strip()
        space = source.profile.xcolor_space.strip()
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if name.lower().startswith("srgb") and space == "RGB":
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        notes.append("unusable ICC profile ignored")
        return image.convert("RGB")
    notes.append(f"ICC profile {''.join(c for c in name if c.isprintable())[:60]} converted to sRGB")
    assert converted is not None
    return converted


def fit(pixels: Pixels, spec: ImagesSpec) -> Pixels:
    """Make (H, W, 3) uint8 pixels a square (size, size, 3) by `spec.fit`, with antialiased bicubic resampling.

    crop: the centred square of the shorter side; pad: the whole image, centred on the background; stretch: both sides to size.
    """
    size = spec.size
    height, width = pixels.shape[:2]
    if spec.fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return _resize(pixels[top : top + side, left : left + side], size, size)
    if spec.fit == "stretch":
        return _resize(pixels, size, size)
    scale = size / max(height, width)
    inner = _resize(pixels, max(1, round(width * scale)), max(1, round(height * scale)))
    out = np.empty((size, size, 3), np.uint8)
    out[:] = ImageColor.getrgb(spec.background)[:3]
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    out[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return out


def _resize(pixels: Pixels, width: int, height: int) -> Pixels:
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.uint8).copy()
