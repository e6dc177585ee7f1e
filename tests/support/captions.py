"""Captions of images by a strategy of the engine, as its jobs make them."""

from __future__ import annotations

from typing import Any

from engine.conditions.captions import STRATEGIES
from engine.spec.recipe import CaptionSpec


def said_of(spec: CaptionSpec, fitted: dict[str, Any], pixels: Any) -> list[str]:
    """N captions of pixels (N,H,W,3) or (N,H,W) uint8 with what was fitted on the training split."""
    strategy = STRATEGIES[spec.kind]
    return strategy.say(strategy.observer(spec, "cpu")(pixels), fitted)
