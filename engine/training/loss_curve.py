"""Loss curves as results hold them."""

from __future__ import annotations

from collections.abc import Sequence

from engine.training.trainingresults import Curve

MAX_POINTS = 1000


def curve(losses: Sequence[float], seconds: float) -> Curve:
    """JSON-ready: each step's loss, or the means of up to 1,000 equal stretches of steps, with the step that ends
    each."""
    stride = max(1, -(-len(losses) // MAX_POINTS))
    stretches = [losses[first : first + stride] for first in range(0, len(losses), stride)]
    return {
        "steps": len(losses),
        "seconds": round(seconds, 3),
        "step": [min((n + 1) * stride, len(losses)) for n in range(len(stretches))],
        "loss": [sum(stretch) / len(stretch) for stretch in stretches],
    }
