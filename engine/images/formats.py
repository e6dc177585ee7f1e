"""What bytes that are no usable image are instead: told from their first bytes, for the quarantine's reasons."""

from __future__ import annotations

import re

SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "PDF"),
    (b"%!PS", "EPS or PostScript"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"8BPS", "Photoshop"),
    (b"DDS ", "DDS"),
    (b"v/1\x01", "OpenEXR"),
    (b"\x93NUMPY", "NumPy array"),
    (b"PK\x03\x04", "ZIP archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"PAR1", "Parquet"),
    (b"FUJIFILM", "camera raw"),
    (b"DICM", "DICOM"),
)
ALLOWED: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"RIFF", "WebP"),
)
ISO_BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heif": "HEIC",
    b"mif1": "HEIC",
    b"hevc": "HEIC",
}
EXTENSIONS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "TIFF": ("tif", "tiff"),
    "GIF": ("gif",),
    "BMP": ("bmp", "dib"),
}
KNOWN_EXTENSIONS = frozenset(extension for extensions in EXTENSIONS.values() for extension in extensions)


def explain(data: bytes) -> tuple[str, str]:
    """(reason, detail) for bytes that Pillow did not identify as one of the allowed formats."""
    if data[4:8] == b"ftyp":
        return "format_not_allowed", f"{ISO_BRANDS.get(data[8:12], 'video or HEIF')}; convert it to JPEG, PNG or WebP"
    for signature, name in SIGNATURES:
        if data.startswith(signature) or (name == "DICOM" and data[128:132] == signature):
            return "format_not_allowed", f"{name}; convert it to JPEG, PNG or WebP"
    if is_text(data):
        return _explain_text(data)
    for signature, name in ALLOWED:
        if data.startswith(signature):
            cut = len(data) < 64 or _declared_length(data, name) > len(data)
            layout = ", or of a pixel layout that is not read; save it as 8-bit RGB" if name == "TIFF" else ""
            return ("truncated", f"{name} ends within its header") if cut else ("undecodable", f"broken {name}{layout}")
    if not any(data[:65536]):
        return "not_an_image", "zero bytes only"
    return "not_an_image", "no known image format"


def _declared_length(data: bytes, name: str) -> int:
    return 8 + int.from_bytes(data[4:8], "little") if name == "WebP" else 0


def is_text(data: bytes) -> bool:
    """Whether the first 1,024 bytes read as text: no control characters, and UTF-8 up to a cut last character."""
    head = data[:1024]
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head):
        return False
    try:
        head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3 and len(data) > len(head)
    return True


def _explain_text(data: bytes) -> tuple[str, str]:
    head = data[:1024].lower()
    if b"<svg" in head:
        return "format_not_allowed", "SVG; convert it to JPEG, PNG or WebP"
    if b"<html" in head or b"<!doctype html" in head:
        return "not_an_image", "an HTML page"
    if data.startswith(b"version https://git-lfs"):
        return "not_an_image", "a Git LFS pointer; run git lfs pull"
    return "not_an_image", "text"


def misnamed(name: str, format_name: str) -> str | None:
    """A note when the extension of a file name belongs to another format than its content."""
    stem, dot, extension = name.rpartition(".")
    if (
        not dot
        or not stem
        or extension.lower() not in KNOWN_EXTENSIONS
        or extension.lower() in EXTENSIONS.get(format_name, ())
    ):
        return None
    return f"{format_name} named .{extension.lower()}"
