"""The gate: why a drawn image is not good enough to keep, and when so many fail that the run must stop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.errors import DataError
from engine.spec.recipe import GateSpec

CONSTANT_IMAGE = "constant_image"
LOW_CLIP_SCORE = "low_clip_score"

SOME = 1024  # pixels that show of nearly every image that it is not constant
MIN_JUDGED = 100  # below so many samples a share of failures says little


class Gate:
    """Passes or names the reason; what is not finite has been refused by the sampler before."""

    def __init__(self, spec: GateSpec) -> None:
        self.spec = spec

    def check(self, pixels: NDArray[np.uint8], clip_score: float | None = None) -> str | None:
        """The reason to draw again, or None; pixels (H, W, 3) uint8, `clip_score` a cosine similarity.

        An image is constant when no channel's standard deviation over its pixels (0 to 255) reaches `min_std`.
        """
        flat = pixels.reshape(-1, pixels.shape[-1])
        if _least_std(flat) < 1.01 * self.spec.min_std and _std(flat) < self.spec.min_std:
            return CONSTANT_IMAGE
        least = self.spec.min_clip_score
        if least is not None and not (clip_score is not None and clip_score >= least):
            return LOW_CLIP_SCORE
        return None


def _std(flat: NDArray[np.uint8]) -> float:
    """The largest standard deviation of a channel; `flat` is (pixels, channels)."""
    return float(flat.astype(np.float32).std(axis=0).max())


def _least_std(flat: NDArray[np.uint8]) -> float:
    """What `_std` is at the least, for little work: it settles all but nearly constant images.

    A range of r over n pixels means at least r / sqrt(2 n). Of a large image m pixels are looked at: the squares around
    their own mean add up to no more than those of all pixels around theirs, so that their deviation counts sqrt(m / n)
    times.
    """
    step = len(flat) // SOME
    if step < 2:
        return float((flat.max(axis=0) - flat.min(axis=0)).max()) / math.sqrt(2 * len(flat))
    some = flat[::step]
    return _std(some) * math.sqrt(len(some) / len(flat))


class Budget:
    """Quarantined samples against those done; more than `max_quarantined` of them stops the run.

    At the end of the plan the share counts as it is. Before, from 100 samples on, the run stops only when chance does
    not explain the excess (4 binomial standard deviations), so that a run within its budget is not stopped on the way.
    """

    def __init__(self, spec: GateSpec, count: int) -> None:
        self.share, self.count = spec.max_quarantined, count
        self.done = 0
        self.reasons: Counter[str] = Counter()

    @property
    def quarantined(self) -> int:
        """Samples given up so far."""
        return self.reasons.total()

    def add(self, done: int, reasons: Iterable[str]) -> None:
        """Count `done` more samples, of which one is quarantined for each reason; DataError when the budget is
        overrun."""
        self.done += done
        self.reasons.update(reasons)
        if self.quarantined > self._limit():
            raise too_many(self.reasons, self.done, f"more than generate.gate.max_quarantined = {self.share:g} allows")

    def _limit(self) -> float:
        expected = self.share * self.done
        if self.done >= self.count or not self.share:
            return expected
        if self.done < MIN_JUDGED:
            return self.done
        return expected + 4 * math.sqrt(expected * (1 - self.share))


def too_many(reasons: Counter[str], done: int, limit: str) -> DataError:
    """The error that stops a run over its budget, with the most frequent reason."""
    reason, times = reasons.most_common(1)[0]
    what = f"{reasons.total()} of {done} samples failed every attempt, {limit}; most often {reason} ({times})"
    return DataError("generate", what, advice(reason))


def none_passed(reasons: Counter[str], drawn: int) -> DataError:
    """The error that stops a shard of which nothing passes, with the most frequent reason."""
    reason, times = reasons.most_common(1)[0]
    return DataError(
        "generate", f"none of the first {drawn} samples passed; most often {reason} ({times})", advice(reason)
    )


def advice(reason: str) -> str:
    """What to try against a reason; the tolerance itself may be raised on an output that is begun."""
    if reason.startswith("non_finite"):
        return "set model.dtype to float32 or bfloat16, or check the checkpoint's weights"
    tolerate = "or raise generate.gate.max_quarantined to go on with what there is"
    if reason == LOW_CLIP_SCORE:
        return f"lower generate.gate.min_clip_score or raise generate.guidance_scale in a new output, {tolerate}"
    if reason == CONSTANT_IMAGE:
        return f"lower generate.gate.min_std in a new output, {tolerate}"
    return f"see the records in data/, {tolerate}"
