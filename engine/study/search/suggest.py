"""Which setting to try next by Optuna: its tree-structured Parzen estimator over the grid, no setting twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.study.search.search_plan import Point, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

STARTUP = 5  # settings drawn at random before the estimator has something to go by
ATTEMPTS = 20  # of the estimator at a setting that was not tried yet; then one of those is drawn at random


def searcher(space: Space, known: Sequence[tuple[Point, float]], seed: int, metric: str) -> Any:
    """Ray Tune's OptunaSearch, which knows the scores of finished settings and suggests others as indices into
    `space`."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return OptunaSearch(
        space=distributions(space),
        metric=metric,
        mode="max",
        points_to_evaluate=[space.indices(point) for point, _ in known],
        evaluated_rewards=[score for _, score in known],
        sampler=sampler(space, seed),
    )


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Indices into each dimension's values: ordered where these are numbers, else categories."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in space.dimensions:
        ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        count = len(values)
        found[name] = IntDistribution(0, count - 1) if ordered else CategoricalDistribution(tuple(range(count)))
    return found


def sampler(space: Space, seed: int) -> Any:
    """A sampler that follows from the study's trials and the seed alone: each suggestion has a generator of its own."""
    from optuna.samplers import BaseSampler, TPESampler

    class Untried(BaseSampler):
        """Optuna's TPE, asked again where it suggests what was tried or is being tried."""

        def __reduce__(self) -> Any:  # Tune pickles its searcher
            return sampler, (space, seed)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
            return distributions(space)

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, BaseDistribution]) -> dict[str, int]:
            tried = {_order(space, t.params) for t in study.get_trials(deepcopy=False) if t.number != trial.number}
            rng = np.random.default_rng([seed, trial.number])
            for _ in range(ATTEMPTS if trial.number >= STARTUP else 0):
                own = TPESampler(n_startup_trials=STARTUP, multivariate=True, seed=int(rng.integers(1 << 31)))
                suggested = own.sample_relative(study, trial, search_space)
                found = {name: int(suggested.get(name, 0)) for name in search_space}  # it leaves out single values
                if suggested and _order(space, found) not in tried:
                    return found
            left = [p for p in map(space.indices, space.points()) if _order(space, p) not in tried]
            return left[int(rng.integers(len(left)))]

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            raise AssertionError("every parameter is sampled with the others")

    return Untried()


def _order(space: Space, indices: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(indices.get(name) for name, _ in space.dimensions)
