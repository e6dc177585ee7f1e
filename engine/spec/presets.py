"""Settings of the closed-set generator that fit the images: filled in where a recipe leaves them out, before it is
validated.

Each row is measured: docs/pretraining.md has the times and where the figures come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engine.regular import Json

LARGEST_PIXELS = 64  # a side, for a generator in pixels
# Side in pixels -> `pretrain.pixel`, up to that side.
PIXEL: dict[int, Json] = {
    8: {"blocks": [32, 64], "steps": 1500, "batch": 64, "lr": 2e-3},
    16: {"blocks": [32, 64, 96], "steps": 3000, "batch": 64, "lr": 2e-3},
    32: {"blocks": [32, 64, 128], "attention": [8], "steps": 4000, "batch": 64, "lr": 1e-3},
    64: {"blocks": [32, 64, 96, 128], "attention": [8], "steps": 6000, "batch": 64, "lr": 1e-3},
}
# The same above, in latents: 16 a side.
LATENT: dict[int, dict[str, Json]] = {
    128: {
        "vae": {"blocks": [32, 64, 64, 64], "steps": 2000, "batch": 16, "lr": 1e-3},
        "unet": {"blocks": [96, 192], "head_dim": 32, "steps": 6000, "batch": 32, "lr": 1e-3},
        "clip": {"patch": 16},
    },
}
PATCH = {8: 2, 16: 4, 32: 8, 64: 16}  # of the CLIP
HELD_OUT = 0.1
VIEWS = {"probability": 0.5}
OF_PRETRAIN = ("clip", "vae", "unet", "pixel", "views")  # its sections that are filled in
OF_LATENTS = ("unet", "dit", "vae", "denoiser")
FLAG = TypeAdapter(bool)


def fill(data: Any) -> Any:
    """A recipe's plain data with `pretrain.space` and, for pixels, what belongs to it; what the recipe says stays.

    In latents as soon as the recipe names a part of that, asks for what only text brings, or has images above 64
    pixels. Data that cannot be read so stays as it is, for the validation that follows to refuse.
    """
    if not isinstance(data, dict) or not _closed_set(data):
        return data
    pretrain, generate, size = _section(data, "pretrain"), _section(data, "generate"), _side(data)
    if pretrain is None or generate is None or size is None:
        return data
    if any(_section(pretrain, part) is None for part in OF_PRETRAIN):
        return data
    space = pretrain.get("space", "latent" if _asks_for_latents(pretrain, generate, size) else "pixel")
    if space != "pixel" or size > LARGEST_PIXELS:
        rows = _latent_rows(size) if pretrain.get("denoiser", "unet") == "unet" else {}
        return data | {"pretrain": {**pretrain, **_over(rows, pretrain, size), "space": space}}
    filled = _over(_pixel_rows(pretrain, size), pretrain, size)
    token = {} if _reads_features(pretrain) else {"visual_token": "none"}
    told = data | ({"match": {**token, **data["match"]}} if isinstance(data.get("match"), dict) else {})
    return told | {
        "pretrain": {"held_out": HELD_OUT, **pretrain, **filled, "space": space},
        "generate": {**token, **_sampling(filled["pixel"], generate), **generate},
    }


def _pixel_rows(pretrain: Mapping[str, Any], size: int) -> dict[str, Json]:
    side = next(side for side in PIXEL if size <= side)
    row = PIXEL[side] | {"attention": [size * own // side for own in PIXEL[side].get("attention", ())]}
    if "blocks" in pretrain.get("pixel", {}):
        del row["attention"]  # blocks of the recipe's own have it where the recipe says so
    return {"pixel": row, "clip": {"patch": PATCH[side]}, "views": VIEWS}


def _latent_rows(size: int) -> dict[str, Json]:
    if not LARGEST_PIXELS < size <= 128:
        return {}
    vae = LATENT[128]["vae"]
    blocks = vae["blocks"] if size % 16 == 0 else vae["blocks"][1:]  # the U-Net halves the latents once
    return LATENT[128] | {"vae": vae | {"blocks": blocks}}


def _over(rows: Mapping[str, Json], pretrain: Mapping[str, Any], size: int) -> dict[str, Json]:
    """Sections of rows below the recipe's own, with a patch that divides sides between the rows' too."""
    fitted = {part: row | ({"patch": gcd(size, row["patch"])} if "patch" in row else {}) for part, row in rows.items()}
    return {part: {**row, **pretrain.get(part, {})} for part, row in fitted.items()}


def _sampling(pixel: Json, generate: Mapping[str, Any]) -> dict[str, str]:
    """Autoguidance, unless the recipe keeps no weaker model, or asks for what goes with the other guidance; a sampler
    of its objective."""
    other = {"guidance_on", "guidance_interval"} & generate.keys()
    guided = {} if other or not pixel.get("guide", 1) else {"guidance": "auto"}
    return guided | ({"scheduler": "flow_euler"} if pixel.get("objective") == "flow" else {})


def _closed_set(data: Mapping[str, Any]) -> bool:
    model = _section(data, "model")
    return model is not None and model.get("checkpoint") is None


def _asks_for_latents(pretrain: Mapping[str, Any], generate: Mapping[str, Any], size: int) -> bool:
    token = generate.get("visual_token", "none") != "none" and not _reads_features(pretrain)
    return (
        any(part in pretrain for part in OF_LATENTS)
        or size > LARGEST_PIXELS
        or token
        or bool(generate.get("negative_prompt"))
    )


def _reads_features(pretrain: Mapping[str, Any]) -> bool:
    """`pretrain.pixel.features`, however it is spelt."""
    try:
        return FLAG.validate_python(pretrain.get("pixel", {}).get("features", False))
    except ValidationError:
        return False


def _side(data: Mapping[str, Any]) -> int | None:
    """`images.size`, which 3.2e1 may be too; None where it is no whole number."""
    images = _section(data, "images")
    size = None if images is None else images.get("size", 512)
    if isinstance(size, float) and size.is_integer():
        return int(size)
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _section(data: Mapping[str, Any], name: str) -> Json | None:
    """A section as it stands, an empty one where it is left out, None where it is something else."""
    value = data.get(name, {})
    return value if isinstance(value, dict) else None
