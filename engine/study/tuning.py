"""Trials on Ray Tune: each runs in a process of its own, on one GPU or one CPU, and publishes its own result."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.cluster.progress import Reporter
from engine.errors import ClusterError, MimeoError
from engine.spec.recipe import ResourcesSpec
from engine.storage import temporary
from engine.training.setup import FINDINGS, await_room, beside, prepare

QUIET = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
FAULT = "fault"
SCORE = "score"
ATTEMPTS = 3  # further ones of a trial whose process died; what is published is not done again

Report = Callable[[float], None]
Function = Callable[[dict[str, Any], Report, Any, str], None]
Ended = Callable[[dict[str, Any], dict[str, Any]], None]


@dataclass(frozen=True)
class Ending:
    """How one trial ended: its settings, its last score, and the one-line error that ended it, if one did."""

    config: Mapping[str, Any]
    score: float | None
    error: MimeoError | None


def every(
    function: Function,
    name: str,
    keys: Sequence[Any],
    parameters: Any,
    resources: ResourcesSpec,
    reporter: Reporter,
    title: str,
) -> None:
    """Run one trial for each key, as setting `name`, with progress; raises the first fault, as each one is needed."""
    from ray import tune

    done = 0
    with reporter.task(title, len(keys), f"{name}s") as task:
        task.update(0)

        def tell() -> None:
            nonlocal done
            done += 1
            task.update(done)

        space = {name: tune.grid_search(list(keys))}
        endings = run(function, space, parameters, resources=resources, tell=tell)
    for ending in endings:
        if ending.error is not None:
            where = f"{name} {ending.config[name]}: {ending.error.where}"
            raise type(ending.error)(where, ending.error.what, ending.error.fix)


def run(
    function: Function,
    space: Mapping[str, Any],
    parameters: Any,
    *,
    resources: ResourcesSpec,
    tell: Callable[[], None],
    searcher: Any = None,
    scheduler: Any = None,
    samples: int = 1,
    ended: Ended = lambda config, result: None,
) -> list[Ending]:
    """Run `function(config, report, parameters, device)` for what Ray Tune draws from `space`; larger scores are
    better.

    Call it inside a Ray session. Every trial has one GPU where `resources` gives cuda, else one CPU, on nodes of its
    labels. `parameters` goes to the object store once; `tell` is called as each trial ends; before it
    `ended(config, result)`, with its last report, where it came to its end or the scheduler stopped it. What a trial
    publishes is the truth about it: Tune's own state lies in a temporary folder, and resuming means not to ask for what
    is published. A trial whose process died begins again, up to `ATTEMPTS` times. A MimeoError ends its own trial and
    comes back as a value; any other exception is raised. ClusterError where no trial has room.
    """
    from engine.cluster import nodes
    from engine.cluster.session import device

    where = device(resources)
    await_room(one_worker(resources), where)
    need = {"CPU": 1.0, "GPU": 1.0} if where == "cuda" else {"CPU": 1.0}
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from ray import tune

    given = {"function": function, "parameters": parameters, "threads": resources.threads, "device": where}
    with temporary.folder("tune") as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, **given), _room(need, resources)),
            param_space=dict(space),
            tune_config=tune.TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=samples,
                search_alg=searcher,
                scheduler=scheduler,
                max_concurrent_trials=max(1, nodes.slots(need, resources.labels)),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS),
                callbacks=[_watch(tell, ended)],
            ),
        )
        return [_ending(result) for result in beside(tuner.fit)]


def one_worker(resources: ResourcesSpec) -> ResourcesSpec:
    """The resources of one of many trials side by side: one worker each."""
    return resources.model_copy(update={"train_workers": 1, "train_workers_min": None})


def _room(need: dict[str, float], resources: ResourcesSpec) -> Any:
    """What a trial takes, on nodes of the recipe's labels."""
    from ray import tune

    labels = {"bundle_label_selector": [dict(resources.labels)]} if resources.labels else {}
    return tune.PlacementGroupFactory([need], "PACK", **labels)


def _trial(config: dict[str, Any], function: Function, parameters: Any, threads: int, device: str) -> None:
    """What Tune runs in a process of its own. Findings and plain bugs travel as a value: a second attempt mends
    none."""
    from ray import tune

    from engine.cluster.session import QUIET as SESSION

    os.environ.update(SESSION)
    prepare(threads, device)
    try:
        function(config, lambda score: tune.report({SCORE: score, FAULT: None}), parameters, device)
    except FINDINGS as error:
        tune.report({SCORE: float("-inf"), FAULT: pickle.dumps(error)})


def _watch(tell: Callable[[], None], ended: Ended) -> Any:
    from ray import tune

    class Watch(tune.Callback):
        """Sees trials as they end; Tune pickles it with its own state, where what it tells (a terminal) has no
        place."""

        def __init__(self, tell: Callable[[], None], ended: Ended) -> None:
            self.tell, self.ended = tell, ended

        def __getstate__(self) -> dict[str, object]:
            return {}

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.ended(dict(trial.config), dict(trial.last_result or {}))
            self.tell()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.tell()

    return Watch(tell, ended)


def _ending(result: Any) -> Ending:
    if result.error is not None:
        raise _cause(result.error)
    metrics = result.metrics or {}
    error = pickle.loads(metrics[FAULT]) if metrics.get(FAULT) else None
    if error is not None and not isinstance(error, MimeoError):
        raise error
    return Ending(dict(result.config or {}), None if error else metrics.get(SCORE), error)


def _cause(error: Exception) -> Exception:
    """A process that died is a matter of the cluster; what else a trial raised is a bug and is raised as it is."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayActorError):
        return ClusterError("study", "a trial's process died (out of memory?)", "run the same command again")
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error
