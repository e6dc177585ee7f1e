"""Nested seeds, in one place: generator seeds are the unit of every study, and each has judge seeds of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FRESH = 1000  # from a selection's generator seeds to those that read the test split; as many as a study may have
NO_VERDICT = "no verdict: one generator seed"


def generator_seeds(seed: int, count: int, *, fresh: bool = False) -> list[int]:
    """The `count` generator seeds of a study whose recipe has `seed`; `fresh`: others, for reading the test split after
    a choice."""
    first = seed + FRESH if fresh else seed
    return [first + number for number in range(count)]


def judge_seed(generator: int, number: int) -> int:
    """The 63-bit seed of classifier `number` of a generator seed: equal in all arms of that generator, in no other
    generator's.

    Shared by generators they would be drawn once and not once a generator: intervals over generators would be too
    narrow.
    """
    from engine.seeds import derive

    return derive(generator, "judge", number)


def judge_seeds(generator: int, count: int) -> list[int]:
    """The first `count` of them."""
    return [judge_seed(generator, number) for number in range(count)]


def judge_spread(accuracies: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation over the judges within a generator seed, pooled over these (a row each); None where each has
    one judge."""
    freedom = sum(len(row) - 1 for row in accuracies)
    if not freedom:
        return None
    return float(np.sqrt(sum(np.var(row) * len(row) for row in accuracies) / freedom))
