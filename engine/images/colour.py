"""Whatever colours and transparency a file has become opaque sRGB."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor

from engine.images.deep import Deep

SAME = 1  # a profile that moves no colour by more levels than this is sRGB


def flatten(image: Image.Image, icc: bytes | None, background: str, notes: list[str]) -> Image.Image:
    """An image of 8-bit samples as opaque RGB in sRGB; its transparent parts show the background."""
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (*ImageColor.getrgb(background)[:3], 255))
        opaque = layer.convert("RGB")
        colour = to_srgb(opaque.getchannel(0) if image.mode in ("1", "L", "LA", "La") else opaque, icc, notes)
        colour.putalpha(layer.getchannel("A"))
        canvas.alpha_composite(colour)
        notes.append(f"transparency over {background}")
        return canvas.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    return to_srgb(image, icc, notes)


def flatten_deep(deep: Deep, icc: bytes | None, background: str, notes: list[str]) -> Image.Image:
    """`flatten` for samples of more than 8 bits, rounded to 8 bits once, at the end."""
    eight = deep.eight_bits()
    srgb = to_srgb(Image.fromarray(eight[..., 0] if eight.shape[-1] == 1 else eight), icc, notes)
    if deep.alpha is None:
        return srgb
    colour = np.asarray(srgb, float) if icc else deep.colour * (255 / deep.top)
    behind = np.array(ImageColor.getrgb(background)[:3], float)
    notes.append(f"transparency over {background}")
    return Image.fromarray(np.floor(colour * deep.alpha + behind * (1 - deep.alpha) + 0.5).astype(np.uint8))


def to_srgb(image: Image.Image, icc: bytes | None, notes: list[str]) -> Image.Image:
    """An L, RGB or CMYK image as RGB in sRGB; a profile that is broken or made for other channels is ignored, and a
    note says so."""
    if not icc:
        return image if image.mode == "RGB" else image.convert("RGB")
    try:
        transform, space, name = _transform(icc, image.mode)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        notes.append("unusable ICC profile ignored")
        return image.convert("RGB")
    if transform is None:
        return image.convert("RGB")
    notes.append(f"ICC profile {name} converted to sRGB")
    return transform.apply(image.convert("RGB") if space == "RGB" else image)


@functools.lru_cache(maxsize=4)
def _transform(icc: bytes, mode: str) -> tuple[Any, str, str]:
    """(transform or None where it changes nothing, the profile's colour space, its name) for images of a mode.

    What a profile does is found on a grid of colours: names lie. Raises PyCMSError, OSError, TypeError or ValueError.
    """
    source = ImageCms.getOpenProfile(io.BytesIO(icc))
    name = "".join(c for c in (ImageCms.getProfileDescription(source) or "").strip() if c.isprintable())[:60]
    space = source.profile.xcolor_space.strip()
    taken = "RGB" if space == "RGB" and mode == "L" else mode
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), taken, "RGB")
    if taken == "CMYK":
        return transform, space, name
    ramp = np.arange(256, dtype=np.uint8)
    probe = ramp[None]
    if taken == "RGB":
        steps = ramp[::15]
        grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(1, -1, 3)
        probe = np.concatenate([grid, np.repeat(ramp[None, :, None], 3, -1)], 1)
    before = Image.fromarray(probe)
    change = np.asarray(transform.apply(before), np.int64) - np.asarray(before.convert("RGB"), np.int64)
    return (None if np.abs(change).max() <= SAME else transform), space, name
