"""Real image files for tests: mixed formats, modes and sizes, and the bad ones of every kind, written without the
engine."""

from __future__ import annotations

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

JPEG_ADOBE_MARKER = b"\xff\xee\x00\x0eAdobe"


def picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth, colourful (H, W, 3) uint8 picture that no other draw repeats."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    phase, pitch = rng.uniform(0, 6.28, 3), rng.uniform(3, 12, (3, 2))
    waves = [np.sin(pitch[c, 0] * x + pitch[c, 1] * y + phase[c]) for c in range(3)]
    return ((np.stack(waves, -1) * 0.5 + 0.5) * 255).astype(np.uint8)


def save(image: Image.Image, format: str, **options: object) -> bytes:
    """The bytes of an image as Pillow writes them."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and CRC."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of raw, unfiltered rows (each without its filter byte), written by the specification; `extra` goes before
    IDAT."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    stride = len(rows) // height if height and rows else 0
    filtered = b"".join(b"\x00" + rows[i * stride : (i + 1) * stride] for i in range(height)) if rows else b""
    body = png_chunk(b"IDAT", zlib.compress(filtered)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + body + png_chunk(b"IEND", b"")


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W) grey or (H, W, 3) colour uint16 values."""
    height, width = values.shape[:2]
    return png(width, height, 16, 0 if values.ndim == 2 else 2, values.astype(">u2").tobytes())


def tiff(
    width: int,
    height: int,
    bits: tuple[int, ...],
    data: bytes,
    photometric: int = 1,
    extra: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """An uncompressed little-endian TIFF of one strip, written by the specification; `extra` holds (tag, short)
    pairs."""
    samples = len(bits)
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, bits[0] if samples == 1 else None),
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, None),
        (277, 3, 1, samples),
        (278, 4, 1, height),
        (279, 4, 1, len(data)),
        *((tag, 3, 1, value) for tag, value in extra),
    ]
    after = 8 + 2 + 12 * len(tags) + 4
    bits_data = struct.pack(f"<{samples}H", *bits) if samples > 1 else b""
    values = {258: after, 273: after + len(bits_data)}
    entries = b""
    for tag, kind, count, value in tags:
        entries += struct.pack("<HHII", tag, kind, count, values[tag] if value is None else value)
    head = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return head + bits_data + data


def with_orientation(image: Image.Image, format: str, orientation: int, **options: object) -> bytes:
    """An image file whose EXIF block says how it is to be turned."""
    exif = Image.Exif()
    exif[274] = orientation
    return save(image, format, exif=exif, **options)


def icc_profile(primaries: np.ndarray | None, gamma: float, name: str = "Wide test space") -> bytes:
    """An ICC v2 profile: `primaries` (3, 3) holds the D50 XYZ of red, green and blue as columns, None is grey; one
    gamma for all."""

    def s15(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(s15(float(v)) for v in values)

    text = name.encode()
    desc = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(8 + 2 + 1 + 67)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"desc": desc + bytes(-len(desc) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz(np.array([0.9642, 1.0, 0.8249])),
    }
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        tags |= {kind: xyz(column) for kind, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries.T, strict=True)}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    header = (
        struct.pack(">I", size)
        + bytes(4)
        + b"\x02\x40\0\0mntr"
        + (b"GRAY" if primaries is None else b"RGB ")
        + b"XYZ "
        + bytes(12)
        + b"acsp"
        + bytes(28)
    )
    header += s15(0.9642) + s15(1.0) + s15(0.8249)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def _p3(image: Image.Image) -> bytes:
    columns = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])
    return save(image, "PNG", icc_profile=icc_profile(columns, 2.2, "Display P3"))


def _frames(image: Image.Image, format: str) -> bytes:
    return save(image, format, save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)] * 2)


def _palette(image: Image.Image) -> bytes:
    return save(image.quantize(32), "PNG", transparency=0)


def _alpha(image: Image.Image) -> bytes:
    layer = image.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(image.size))
    return save(layer, "PNG")


GOOD: dict[str, tuple[str, Callable[[Image.Image], bytes]]] = {
    "jpeg": ("jpg", lambda i: save(i, "JPEG", quality=92)),
    "grey-jpeg": ("JPG", lambda i: save(i.convert("L"), "JPEG")),
    "cmyk-jpeg": ("jpeg", lambda i: save(i.convert("CMYK"), "JPEG")),
    "turned-jpeg": ("jpg", lambda i: with_orientation(i, "JPEG", 6)),
    "png": ("png", lambda i: save(i, "PNG")),
    "alpha-png": ("png", _alpha),
    "grey-alpha-png": ("png", lambda i: save(i.convert("LA"), "PNG")),
    "palette-png": ("png", _palette),
    "16-bit-png": ("png", lambda i: png16(np.asarray(i.convert("L")).astype(np.uint16) * 257)),
    "1-bit-png": ("png", lambda i: save(i.convert("1"), "PNG")),
    "wide-gamut-png": ("png", _p3),
    "webp": ("webp", lambda i: save(i, "WEBP", quality=90)),
    "animated.gif": ("gif", lambda i: _frames(i, "GIF")),
    "pages": ("tif", lambda i: _frames(i, "TIFF")),
    "cmyk-tiff": ("tiff", lambda i: save(i.convert("CMYK"), "TIFF")),
    "bmp": ("bmp", lambda i: save(i, "BMP")),
    "misnamed": ("png", lambda i: save(i, "JPEG")),
    "name with spaces é 漢字": ("jpg", lambda i: save(i, "JPEG")),
    "new\nline": ("png", lambda i: save(i, "PNG")),
}


def _write(data: Callable[[Image.Image], bytes]) -> Callable[[Path, Image.Image], None]:
    return lambda path, image: path.write_bytes(data(image)) and None


def _socket(path: Path, image: Image.Image) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # socket paths are short: bind by way of /proc
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _outside(path: Path, image: Image.Image) -> None:
    path.symlink_to("/etc/passwd")


BAD: dict[str, tuple[str, str, Callable[[Path, Image.Image], None]]] = {
    "zero": ("jpg", "empty_file", _write(lambda i: b"")),
    "text": ("jpg", "not_an_image", _write(lambda i: b"no picture at all\n" * 9)),
    "page": ("png", "not_an_image", _write(lambda i: b"<!DOCTYPE html><html><body>404</body></html>")),
    "half-jpeg": ("jpg", "truncated", _write(lambda i: (d := save(i, "JPEG"))[: len(d) // 2])),
    "half-png": ("png", "truncated", _write(lambda i: (d := save(i, "PNG"))[: len(d) // 2])),
    "noise": ("jpg", "not_an_image", _write(lambda i: bytes(range(256)) * 8)),
    "bomb": ("png", "bomb", _write(lambda i: save(Image.new("1", (9000, 9000)), "PNG"))),
    "float": ("tif", "float_image", _write(lambda i: save(i.convert("F"), "TIFF"))),
    "drawing": ("svg", "format_not_allowed", _write(lambda i: b'<svg xmlns="http://www.w3.org/2000/svg"></svg>')),
    "document": ("jpg", "format_not_allowed", _write(lambda i: b"%PDF-1.7\n" + bytes(99))),
    "dot": ("png", "tiny", _write(lambda i: save(Image.new("RGB", (1, 1)), "PNG"))),
    "pipe": ("jpg", "not_a_file", lambda path, image: os.mkfifo(path)),
    "plug": ("jpg", "not_a_file", _socket),
    "folder": ("jpg", "not_a_file", lambda path, image: path.mkdir()),
    "broken-link": ("jpg", "broken_link", lambda path, image: path.symlink_to("nowhere.jpg")),
    "way-out": ("jpg", "link_outside", _outside),
}


@dataclass(frozen=True)
class Mixed:
    """An image folder: `good` and `bad` are file names relative to `path`; `bad` gives the expected reason."""

    path: Path
    good: dict[str, str]
    bad: dict[str, str]


def mixed_folder(
    root: Path,
    *,
    classes: tuple[str, ...] = ("circle", "cross", "square"),
    per_class: int = 20,
    bad: float = 0.1,
    seed: int = 0,
) -> Mixed:
    """Write an image folder of `per_class` entries a class, mixed sizes, modes and formats, a share `bad` of them
    bad."""
    rng = np.random.default_rng(seed)
    made = Mixed(root, {}, {})
    good_kinds, bad_kinds = list(GOOD.items()), list(BAD.items())
    number = 0
    for name in classes:
        folder = root / name
        folder.mkdir(parents=True)
        spoiled = round(bad * per_class)
        for i in range(per_class):
            image = Image.fromarray(picture(rng, int(rng.integers(24, 96)), int(rng.integers(24, 96))))
            if i < spoiled:
                kind, (extension, reason, write) = bad_kinds[(len(made.bad)) % len(bad_kinds)]
                path = folder / f"{i:03d} {kind}.{extension}"
                write(path, image)
                made.bad[f"{name}/{path.name}"] = reason
            else:
                kind, (extension, data) = good_kinds[number % len(good_kinds)]
                number += 1
                path = folder / f"{i:03d} {kind}.{extension}"
                path.write_bytes(data(image))
                made.good[f"{name}/{path.name}"] = kind
    return made


def plain_folder(
    root: Path, *, classes: tuple[str, ...] = ("a", "b"), per_class: int = 10, size: int = 16, seed: int = 0
) -> Path:
    """Write a small, faultless image folder of distinct PNGs."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i:04d}.png").write_bytes(save(Image.fromarray(picture(rng, size, size)), "PNG"))
    return root
