"""Early stopping by asynchronous successive halving (arXiv 1810.05934) over classifiers: the rungs are numbers of
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from engine.study.search.search_plan import Seeds

FACTOR = 2  # of the settings at a rung the better half goes on


def grace(classifiers: int) -> int:
    """The first rung: a quarter of a setting's classifiers, two at least."""
    return max(2, -(-classifiers // 4))


def stretches(seeds: Seeds) -> tuple[Seeds, ...]:
    """The classifiers of a setting, cut at the rungs."""
    ends, rung = [0], grace(len(seeds))
    while rung < len(seeds):
        ends.append(rung)
        rung *= FACTOR
    return tuple(seeds[a:b] for a, b in zip(ends, [*ends[1:], len(seeds)], strict=True))


def scheduler(known: Mapping[str, Sequence[float]], classifiers: int) -> Any:
    """Ray Tune's ASHA, told first of the settings that have ended: their running means, a classifier each."""
    from ray.tune.schedulers import ASHAScheduler

    class Informed(ASHAScheduler):
        """ASHA whose rungs hold what earlier sessions have seen."""

        def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
            if not super().set_search_properties(metric, mode, **spec):
                return False
            for key, means in known.items():
                trial = SimpleNamespace(trial_id=f"known {key}")
                self.on_trial_add(None, trial)
                for number, mean in enumerate(means, start=1):
                    self.on_trial_result(None, trial, {"training_iteration": number, metric: mean})
            return True

    return Informed(max_t=classifiers, grace_period=grace(classifiers), reduction_factor=FACTOR)
