"""The arms of an ablation as recipes: what can be said of them before Ray starts, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import output
from engine.errors import ConfigError
from engine.spec import RunSpec, plain, validate
from engine.spec.studies import AblationSpec
from engine.statistics.nested import generator_seeds

TRIALS = output.ABLATION_TRIALS
STUDIES = ("train", "evaluate", "search", "equivalence", "deliberate", "ablation", "worth")


def changed(spec: RunSpec, changes: Mapping[str, Any], seed: int) -> RunSpec:
    """The recipe with dotted keys set to other values, a seed of its own and no study; ConfigError in one line."""
    data = plain(spec) | {"seed": seed, **dict.fromkeys(STUDIES)}
    for dotted, value in changes.items():
        section = data
        *above, last = dotted.split(".")
        for name in above:
            found = section.setdefault(name, {})
            if found is None:
                found = section[name] = {}
            if not isinstance(found, dict):
                raise ConfigError(f"ablation.arms: {dotted}", f"{name} is no section", "correct the key")
            section = found
        section[last] = value
    return validate(data)


@dataclass(frozen=True)
class Arm:
    """One arm under one generator seed: its recipe with the arm's changes made, scored on the images of `split`."""

    arm: str
    seed: int
    spec: RunSpec
    split: str = "validation"

    @property
    def name(self) -> str:
        """Where its scores lie."""
        return f"{TRIALS}/{self.split}/seed-{self.seed}-{self.arm}.json"


def section(spec: RunSpec) -> AblationSpec:
    """The recipe's ablation section, or the default one."""
    return spec.ablation or AblationSpec()


def every_arm(spec: RunSpec) -> list[Arm]:
    """All arms and seeds of the comparison on validation images, seed by seed; ConfigError, in one line, for an arm
    that makes no valid recipe."""
    return _arms(spec, list(section(spec).arms), "validation")


def final_arms(spec: RunSpec, arms: Sequence[str]) -> list[Arm]:
    """Those of some arms that read the test split: as many generator seeds, and others."""
    return _arms(spec, arms, "test")


def _arms(spec: RunSpec, arms: Sequence[str], split: str) -> list[Arm]:
    found = []
    for seed in generator_seeds(spec.seed, section(spec).seeds, fresh=split == "test"):
        for arm in arms:
            try:
                found.append(Arm(arm, seed, changed(spec, section(spec).arms[arm], seed), split))
            except ConfigError as error:
                raise ConfigError(f"ablation.arms.{arm}", error.what, error.fix) from None
    return found


def drawn(spec: RunSpec) -> dict[str, RunSpec]:
    """The recipes of all arms, by their keys."""
    return {f"ablation.arms.{one.arm}": one.spec for one in every_arm(spec)}


def check(spec: RunSpec) -> None:
    """Refuse, before Ray starts, arms that cannot work (ConfigError)."""
    from engine.study.judge_reading import need_validation
    from engine.training.matching.matching_precheck import precheck

    plan = every_arm(spec)
    need_validation(spec.split.validation, "an ablation")
    for one in plan:
        precheck(one.spec)
