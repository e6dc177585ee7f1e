"""Captions of images by interchangeable strategies: the class alone, image moments, or a captioning model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from engine.spec.recipe import CaptionSpec

WORDS = {
    "weight": ("thin", "regular", "bold"),
    "width": ("narrow", "medium", "wide"),
    "slant": ("slanted left", "upright", "slanted right"),
}
PIXELS_AT_ONCE = 1 << 22  # values in one piece of work: bounds the memory for large images
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601

Pixels = NDArray[np.uint8]
Facts = NDArray[np.float64] | Sequence[Any]
Observer = Callable[[Pixels], Facts]


class Fitted(TypedDict):
    """What a strategy has learnt of all training images: the cuts of each fact, or how many captions were cut."""

    cuts: NotRequired[dict[str, list[float]]]
    cut: NotRequired[int]


@dataclass(frozen=True)
class Strategy:
    """A way to caption in three steps, so that workers see images and one place sees the whole training split.

    `observer(spec, device)` makes what runs in workers: images (N,H,W,3) or (N,H,W) in, one small fact an image out.
    `fit` learns from the facts of all training images what is stored beside the captions (JSON-ready). `say` turns
    facts into captions.
    `files` checks the model without loading it (ConfigError) and gives its files.
    """

    observer: Callable[[CaptionSpec, str], Observer]
    fit: Callable[[Facts], Fitted] = lambda facts: {}
    say: Callable[[Facts, Fitted], list[str]] = lambda facts, fitted: list(facts)
    needs_images: bool = True
    needs_model: bool = False
    files: Callable[[CaptionSpec], list[Path]] = lambda spec: []


def moments(pixels: Pixels) -> NDArray[np.float64]:
    """Weight, width and slant (N,3) of the ink in images (N,H,W,3) or (N,H,W); all three do not change with the image's
    size.

    Ink is the distance from the background, the median of the border pixels: dark on light and light on dark read
    alike. Weight is the ink's mass over its radius of gyration (3.5 strokes thick for a straight line), width its
    horizontal standard deviation, both in units of the image's side; slant the shear dx/dy, positive when the top leans
    right. Pixels count as squares (their own variance, 1/12, is added), so enlarging by pixel repetition changes
    nothing. No ink: zeros.
    """
    step = max(1, PIXELS_AT_ONCE // max(1, pixels[0].size if len(pixels) else 1))
    pieces = [_moments(pixels[first : first + step]) for first in range(0, len(pixels), step)]
    return np.concatenate([np.empty((0, len(WORDS))), *pieces])


def _moments(pixels: Pixels) -> NDArray[np.float64]:
    grey = np.asarray(pixels, np.float64)
    if grey.ndim == 4:
        grey = grey @ LUMA if grey.shape[-1] == 3 else grey[..., 0]
    count, height, width = grey.shape
    border = np.concatenate([grey[:, 0], grey[:, -1], grey[:, 1:-1, 0], grey[:, 1:-1, -1]], axis=1)
    ink = np.abs(grey - np.median(border, axis=1)[:, None, None]) / 255
    ink[ink < 1e-9] = 0  # what rounding leaves of an even background
    mass = ink.sum(axis=(1, 2))
    share = ink / np.where(mass > 0, mass, 1)[:, None, None]
    side = np.sqrt(height * width)
    y = (np.arange(height) + 0.5)[None, :, None] / side
    x = (np.arange(width) + 0.5)[None, None, :] / side
    x = x - (share * x).sum(axis=(1, 2))[:, None, None]
    y = y - (share * y).sum(axis=(1, 2))[:, None, None]
    own = 1 / (12 * side**2)
    var_x = (share * x**2).sum(axis=(1, 2)) + own
    var_y = (share * y**2).sum(axis=(1, 2)) + own
    cov = (share * x * y).sum(axis=(1, 2))
    weight = mass / side**2 / np.sqrt(var_x + var_y)
    facts = np.stack([weight, np.sqrt(var_x), -cov / var_y], axis=1)
    return np.where((mass > 0)[:, None], facts, np.zeros((count, 3)))


def fit_terciles(facts: Facts) -> Fitted:
    """The two cuts of each fact of `moments` (N,3) that part the images in thirds."""
    cuts = np.quantile(np.asarray(facts, np.float64), (1 / 3, 2 / 3), axis=0).T
    return {"cuts": dict(zip(WORDS, cuts.tolist(), strict=True))}


def say_terciles(facts: Facts, fitted: Fitted) -> list[str]:
    """Such as "bold narrow slanted right"; a value that equals a cut belongs to the middle."""
    values = np.asarray(facts, np.float64).reshape(-1, len(WORDS))
    columns = []
    for column, (name, words) in zip(values.T, WORDS.items(), strict=True):
        low, high = fitted["cuts"][name]
        columns.append([words[place] for place in 1 - (column < low) + (column > high)])
    return [" ".join(words) for words in zip(*columns, strict=True)]


def _load_model(spec: CaptionSpec, device: str) -> Observer:
    from engine.conditions.captionmodel import CaptionModel

    return CaptionModel(spec, device)


def _model_files(spec: CaptionSpec) -> list[Path]:
    from engine.conditions.captionmodel import precheck

    return precheck(spec)


MODEL = Strategy(
    _load_model,
    fit=lambda facts: {"cut": sum(fact["cut"] for fact in facts)},
    say=lambda facts, fitted: [fact["caption"] for fact in facts],
    needs_model=True,
    files=_model_files,
)
STRATEGIES = {
    "class": Strategy(lambda spec, device: lambda pixels: [""] * len(pixels), needs_images=False),
    "moments": Strategy(lambda spec, device: moments, fit_terciles, say_terciles),
    "blip": MODEL,
    "model": MODEL,
}


def precheck(spec: CaptionSpec) -> list[Path]:
    """The files of the captioning model, checked without a GPU or Ray; ConfigError in one line when they cannot be
    used."""
    return STRATEGIES[spec.kind].files(spec)
