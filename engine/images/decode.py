"""Bytes in, upright sRGB pixels out, or the reason why not; and the square that the generator is trained on."""

from __future__ import annotations

import functools
import io
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from engine.images import deep, jpeg
from engine.images.colour import flatten, flatten_deep
from engine.images.formats import explain, is_text
from engine.spec.recipe import ImagesSpec

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
MIN_SIDE = 8  # the smallest image that a recipe can ask for; less is a tracking pixel or a rule, not a picture
TRUNCATION_WORDS = (
    "truncated",
    "unexpected end",
    "not enough",
    "unrecognized data stream contents",
    "premature end of jpeg",
)
PNG_DEPTH = 24  # where the IHDR chunk holds the bits a sample
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Pixels = NDArray[np.uint8]

# What Pillow warns of, `decode` turns into a reason or a note itself: sizes against images.max_pixels before a pixel is
# loaded, checksums, EXIF. Filters are set once because `catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")


class BadImage(Exception):
    """A real image that cannot be used: `reason` is a short slug that is counted, `detail` says it in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Decoded:
    """An image at its native size: `image` is RGB in sRGB, upright, opaque; `mode` and `format` are those of the
    file."""

    image: Image.Image
    format: str
    mode: str
    notes: tuple[str, ...]

    @functools.cached_property
    def pixels(self) -> Pixels:
        """(H, W, 3) uint8."""
        return np.asarray(self.image, dtype=np.uint8)


def decode(data: bytes, spec: ImagesSpec) -> Decoded:
    """Decode untrusted bytes by their content, whatever the file was called.

    EXIF orientation is applied, ICC colours become sRGB, alpha is composited over `spec.background`, 16 bits are scaled
    to 8, and of several frames or pages the first is taken. Raises BadImage with a reason.
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
            return _upright_srgb(data, image, spec)
    except BadImage:
        raise
    except deep.UnknownRange as error:
        raise BadImage("unknown_range", str(error)) from None
    except jpeg.UnknownLayout as error:
        raise BadImage("unsupported_jpeg", f"{error}; save it with 4:4:4, 4:2:2 or 4:2:0 chroma") from None
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
    """Compare the checksums of the chunks that make the picture, up to the end mark; Pillow does not read all of
    them."""
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


def _upright_srgb(data: bytes, image: Image.Image, spec: ImagesSpec) -> Decoded:
    stored_mode, stored_format, notes = image.mode, image.format or "", _frames(image)
    image.seek(0)
    raw = deep.raw_mode(image)  # before the EXIF of a PNG, which loads it
    orientation = _orientation(image, notes)  # before loading: Pillow turns a TIFF itself, and forgets the tag
    turn = functools.partial(_turned, orientation=1 if stored_format == "TIFF" else orientation)
    icc = image.info.get("icc_profile")
    samples = deep.read(data, image, raw, turn) if "16" in raw or stored_format == "TIFF" else None
    if samples is not None:
        rgb = flatten_deep(samples, icc, spec.background, notes)
    else:
        rgb = flatten(turn(_loaded(data, image, notes)), icc, spec.background, notes)
    return Decoded(rgb, "JPEG" if stored_format == "MPO" else stored_format, stored_mode, tuple(notes))


def _loaded(data: bytes, image: Image.Image, notes: list[str]) -> Image.Image:
    """The picture in 8-bit samples, where Pillow's own reading is not what the format says."""
    if image.format in ("JPEG", "MPO"):
        return jpeg.load(data, image, notes)
    tiles: Any = getattr(image, "tile", ())
    frame = tiles[0].extents if image.format == "GIF" and tiles else None
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        image.info["transparency"] *= {1: 255, 2: 85, 4: 17}.get(
            data[PNG_DEPTH], 1
        )  # Pillow scales pixels and not the key
    image.load()
    if frame and frame != (0, 0, *image.size):  # what the first frame leaves of the canvas is transparent
        layer, canvas = image.convert("RGBA").crop(frame), Image.new("RGBA", image.size)
        canvas.paste(layer, frame[:2])
        return canvas
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        notes.append("alpha of zero everywhere ignored")
        return image.convert("RGB")
    return image


def _frames(image: Image.Image) -> list[str]:
    try:
        count = int(getattr(image, "n_frames", 1))
    except Exception:  # a later frame is broken: the first may still be whole
        return ["later frames are broken, first used"]
    return [f"first of {count} frames"] if count > 1 else []


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """The EXIF orientation 1..8; 1 where the EXIF block cannot be read: it is untrusted too, and no reason to lose the
    picture."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        notes.append("broken EXIF ignored")
        return 1
    if value not in TURNS:
        return 1
    notes.append(f"EXIF orientation {value} applied")
    return int(value)


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def fit(pixels: Pixels, spec: ImagesSpec) -> Pixels:
    """Make (H, W, 3) uint8 pixels a square (size, size, 3) by `spec.fit`, with antialiased bicubic resampling.

    crop: the centred square of the shorter side; pad: the whole image, centred on the background; stretch: both sides
    to size.
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
