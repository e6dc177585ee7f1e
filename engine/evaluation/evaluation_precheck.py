"""What can be said of an evaluation before Ray starts, in about a second and without torch."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import ConfigError
from engine.evaluation import ood
from engine.images import catalog as catalogs
from engine.images.sources import open_sets
from engine.spec import RunSpec
from engine.spec.evaluation import EvaluateSpec
from engine.storage.store import Store


def asked_of(spec: RunSpec) -> EvaluateSpec:
    """The evaluate section; raises ConfigError where there is none, or one that asks for nothing."""
    asked = spec.evaluate
    if asked is None:
        raise ConfigError("evaluate", "is not in the recipe", "add what to evaluate on: sets, corruptions or gap")
    if not asked.sets and asked.corruptions is None and asked.gap is None:
        raise ConfigError("evaluate", "asks for nothing", "add sets, corruptions or gap")
    return asked


def check(spec: RunSpec, store: Store) -> None:
    """Whether all that is asked for can be read, in about a second and before an output is claimed; ConfigError or
    DataError."""
    asked = asked_of(spec)
    if store.exists(catalogs.DONE):
        made = catalogs.load(store)
        names: Sequence[str] | None = made.class_names
        has_test = made.split("test").num_rows > 0
    else:
        sets = open_sets(spec.source, spec.images)
        names, has_test = sets[""].class_names, spec.split.test != 0 or "test" in sets
    if not has_test:
        raise ConfigError(
            "evaluate", "needs a test split, and no real image is in it", "set split.test or source.test_path"
        )
    for name, one in asked.sets.items():
        ood.precheck(name, one, spec, names)
