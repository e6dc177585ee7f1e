"""The trials of a study: each publishes one result beside the settings that decide it, once, wherever there is room."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from engine.cluster.board import Board, follow
from engine.cluster.progress import Reporter
from engine.errors import ConfigError
from engine.spec.recipe import ResourcesSpec
from engine.storage import documents
from engine.storage.store import Store, open_store
from engine.study import tuning

Facts = Mapping[str, Any]
Function = Callable[[Any, Any, str, Board], Facts]  # (study, work, device, board) -> the result


class WithSettings(TypedDict):
    """What every trial's result holds: all that decides it besides the images."""

    settings: dict[str, object]


@dataclass(frozen=True)
class Trial:
    """`key` tells users which one it is, `name` is the file of its result, `work` what the study's function gets."""

    key: str
    name: str
    settings: Facts
    work: Any


def missing(store: Store, plan: Sequence[Trial], section: str) -> list[Trial]:
    """The trials without a result; ConfigError, about the recipe's `section`, where one has a result of other
    settings."""
    for trial in plan:
        known = documents.find(store, trial.name, WithSettings)
        if known is not None and known["settings"] != trial.settings:
            what = f"{trial.key} was measured with other settings in {store.url}"
            raise ConfigError(section, what, "use another output")
    return [trial for trial in plan if not store.exists(trial.name)]


def run(
    function: Function,
    study: Any,
    plan: Sequence[Trial],
    store: Store,
    resources: ResourcesSpec,
    reporter: Reporter,
    title: str,
) -> None:
    """Run each trial on Ray Tune and publish what `function` returns; `study` is what they have in common.

    Call it inside a Ray session. Raises the first trial's MimeoError once all have ended.
    """
    import ray

    board = Board.create()
    parameters = {
        "function": function,
        "study": [ray.put(study)],
        "board": board,
        "url": store.url,
        "trials": {trial.key: trial for trial in plan},
    }
    with follow(board, reporter):
        tuning.every(_trial, "trial", [trial.key for trial in plan], parameters, resources, reporter, title)


def _trial(config: dict[str, Any], report: tuning.Report, parameters: dict[str, Any], device: str) -> None:
    import ray
    import torch

    torch.set_num_threads(1)
    trial: Trial = parameters["trials"][config["trial"]]
    store = open_store(parameters["url"])
    if not store.exists(trial.name):
        facts = parameters["function"](ray.get(parameters["study"][0]), trial.work, device, parameters["board"])
        text = json.dumps({"settings": trial.settings, **facts}, sort_keys=True, allow_nan=False)
        store.create(trial.name, text.encode())
    report(1.0)
