"""The families of generators by the pipeline class that a checkpoint names: an adapter each, behind one interface."""

from __future__ import annotations

from engine.diffusion.families.dit import Dit
from engine.diffusion.families.family import Family
from engine.diffusion.families.pixel import Pixel, PixelFlow
from engine.diffusion.families.sd import StableDiffusion
from engine.diffusion.families.sd3 import StableDiffusion3
from engine.diffusion.families.xl import StableDiffusionXl

ALL: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXl(), StableDiffusion3(), Dit(), Pixel(), PixelFlow())
FAMILIES: dict[str, Family] = {pipeline: family for family in ALL for pipeline in family.pipelines}


def of(pipeline: object) -> Family:
    """The family of a loaded pipeline."""
    return next(FAMILIES[kind.__name__] for kind in type(pipeline).__mro__ if kind.__name__ in FAMILIES)
