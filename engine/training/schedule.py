"""Learning rates as pure functions of the step."""

from __future__ import annotations

import math

WARM_UP = 0.3
START_DIVISOR = 25.0
FINAL_DIVISOR = 1e4


def one_cycle(step: int, steps: int, peak: float) -> float:
    """The learning rate of step 0 .. steps-1 of the 1cycle policy (Smith and Topin, arXiv 1708.07120).

    A cosine from peak/25 up to `peak` over the first 30 %, then a cosine down to peak/250,000: the defaults of torch's
    OneCycleLR.
    """
    start, final = peak / START_DIVISOR, peak / START_DIVISOR / FINAL_DIVISOR
    top = WARM_UP * steps - 1
    if top > 0 and step <= top:
        return _cosine(start, peak, step / top)
    return _cosine(peak, final, (step - top) / (steps - 1 - top) if steps > 1 else 1.0)


def learning_rate(schedule: str, step: int, steps: int, peak: float, warmup: int = 0) -> float:
    """The learning rate of step 0 .. steps-1 under `constant`, `cosine` (to zero) or `one_cycle`; `warmup` steps rise
    linearly first."""
    if schedule == "one_cycle":
        return one_cycle(step, steps, peak)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return peak
    return _cosine(peak, 0.0, (step - warmup) / max(steps - warmup, 1))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))
