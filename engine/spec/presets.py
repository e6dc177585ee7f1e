"""Settings of the closed-set generator that fit the images: filled in where a recipe leaves them out, before it is validated.

Each row is measured: docs/pretraining.md has the times and where the figures come from.
"""

from __future__ import annotations

from typing import Any

LARGEST_PIXELS = 64  # a side, for a generator in pixels
# Side in pixels -> `pretrain.pixel`, up to that side.
PIXEL: dict[int, dict[str, Any]] = {
    8: {"blocks": [32, 64], "steps": 1500, "batch": 64, "lr": 2e-3},
    16: {"blocks": [32, 64, 96], "steps": 3000, "batch": 64, "lr": 2e-3},
    32: {"blocks": [32, 64, 128], "attention": [8], "steps": 10000, "batch": 64, "lr": 1e-3},
    64: {"blocks": [32, 64, 96, 128], "attention": [8], "steps": 20000, "batch": 64, "lr": 1e-3},
}
PATCH = {8: 2, 16: 4, 32: 8, 64: 16}  # of the CLIP
HELD_OUT = 0.1
VIEWS = {"probability": 0.5}
OF_LATENTS = ("unet", "dit", "vae", "denoiser")


def fill(data: Any) -> Any:
    """A recipe's plain data with `pretrain.space` and, for pixels, what belongs to it; what the recipe says stays.

    In latents as soon as the recipe names a part of that, asks for what only text brings, or has images above 64 pixels.
    """
    if not isinstance(data, dict) or not _closed_set(data):
        return data
    pretrain, generate = _section(data, "pretrain"), _section(data, "generate")
    size = _section(data, "images").get("size", 512)
    if pretrain is None or generate is None or not isinstance(size, int) or isinstance(size, bool):
        return data
    space = pretrain.get("space") or ("latent" if _asks_for_latents(data, pretrain, generate, size) else "pixel")
    if space != "pixel" or size > LARGEST_PIXELS:
        return data | {"pretrain": {**pretrain, "space": space}}
    row = next(row for side, row in PIXEL.items() if size <= side)
    patch = next(patch for side, patch in PATCH.items() if size <= side)
    filled: dict[str, Any] = {"held_out": HELD_OUT, "views": VIEWS, **pretrain, "space": space}
    filled["pixel"] = _under(row, pretrain.get("pixel"))
    filled["clip"] = _under({"patch": patch if size % patch == 0 else 2}, pretrain.get("clip"))
    token = {} if _section(filled, "pixel", {}).get("features") else {"visual_token": "none"}
    guided = {"guidance": "auto"} if filled["pixel"].get("guide", 1) else {}
    return data | {"pretrain": filled, "generate": {**token, **guided, **generate}}


def _closed_set(data: dict[str, Any]) -> bool:
    model = _section(data, "model")
    return model is not None and model.get("checkpoint") is None


def _asks_for_latents(data: dict[str, Any], pretrain: dict[str, Any], generate: dict[str, Any], size: int) -> bool:
    features = (_section(pretrain, "pixel") or {}).get("features", False)
    token = generate.get("visual_token", "none") != "none" and not features
    return (
        any(part in pretrain for part in OF_LATENTS)
        or size > LARGEST_PIXELS
        or token
        or bool(generate.get("negative_prompt"))
    )


def _section(data: dict[str, Any], name: str, default: Any = None) -> Any:
    """A section as it stands, an empty one where it is left out, None where it is something else."""
    value = data.get(name, {} if default is None else default)
    return value if isinstance(value, dict) else None


def _under(row: dict[str, Any], own: Any) -> Any:
    """The row's settings below the recipe's own."""
    return {**row, **own} if isinstance(own, dict) else row if own is None else own
