"""The families of generators by the pipeline class that a checkpoint names: an adapter each, behind one interface."""

from __future__ import annotations

from engine.diffusion.families.base import Family
from engine.diffusion.families.sd import StableDiffusion

FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": StableDiffusion(),
    "StableDiffusionImg2ImgPipeline": StableDiffusion(),
}


def of(pipeline: object) -> Family:
    """The family of a loaded pipeline."""
    return FAMILIES[type(pipeline).__name__]
