"""Trials on Ray Tune: each a driver function that starts its own Ray Train run and publishes its own result."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import errors
from engine.cluster.progress import Reporter
from engine.errors import ClusterError, MimeoError
from engine.spec.recipe import ResourcesSpec
from engine.storage import temporary
from engine.training.setup import beside

DRIVER = {"memory": 512 * 2**20}  # what a driver function reserves: its workers take the CPUs and GPUs
QUIET = {"TUNE_DISABLE_SIGINT_HANDLER": "1", "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
FAULT = "fault"
SCORE = "score"

Report = Callable[[float], None]
Function = Callable[[Mapping[str, Any], Report, Any], None]
Ended = Callable[[Mapping[str, Any], Mapping[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """How one trial ended: its settings, its last score, and the one-line error that ended it, if one did."""

    config: Mapping[str, Any]
    score: float | None
    error: MimeoError | None


def concurrent(resources: ResourcesSpec) -> int:
    """How many trials may run at once so that every driver function can start its Ray Train workers (else they wait for
    ever)."""
    from engine.cluster import nodes
    from engine.cluster.session import cores_of_cluster, device

    on_gpus = device(resources) == "cuda"
    room = nodes.slots({"GPU": 1.0}, resources.labels) if on_gpus else cores_of_cluster(resources.labels)
    return max(1, room // resources.train_workers)


def one_worker(resources: ResourcesSpec) -> ResourcesSpec:
    """The resources of a trial's Ray Train run where trials run side by side, each with one worker."""
    return resources.model_copy(update={"train_workers": 1, "train_workers_min": None})


def every(
    function: Function, name: str, keys: Sequence[Any], parameters: Mapping[str, Any], reporter: Reporter, title: str
) -> None:
    """Run one trial for each key, as setting `name`, with progress; raises the first fault, as each one is needed.

    `parameters["resources"]` is what each trial's Ray Train run takes.
    """
    from ray import tune

    done = 0
    with reporter.task(title, len(keys), f"{name}s") as task:
        task.update(0)

        def tell() -> None:
            nonlocal done
            done += 1
            task.update(done)

        space = {name: tune.grid_search(list(keys))}
        ended = run(function, space, parameters, resources=parameters["resources"], tell=tell)
    for one in ended:
        if one.error is not None:
            where = f"{name} {one.config[name]}: {one.error.where}"
            raise type(one.error)(where, one.error.what, one.error.fix)


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
) -> list[Trial]:
    """Run `function(config, report, parameters)` for what Ray Tune draws from `space`; larger scores are better.

    Call it inside a Ray session. `parameters` goes to the object store once; `tell` is called as each trial ends;
    before it
    `ended(config, result)`, with its last report, where it came to its end or the scheduler stopped it. What a trial
    publishes is the truth about it: Tune's own state lies in a temporary folder, and resuming means not to ask for what
    is published. A MimeoError ends its own trial and comes back as a value; any other exception is raised.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from ray import tune

    with temporary.folder("tune") as folder:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, function=function, parameters=parameters), DRIVER),
            param_space=dict(space),
            tune_config=tune.TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=samples,
                search_alg=searcher,
                scheduler=scheduler,
                max_concurrent_trials=concurrent(resources),
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="trials", storage_path=str(folder), verbose=0, callbacks=[_watch(tell, ended)]
            ),
        )
        return [_ended(result) for result in beside(tuner.fit)]


def _trial(config: Mapping[str, Any], function: Function, parameters: Any) -> None:
    """What Tune runs in a process of its own; an error travels as a value."""
    from ray import tune

    from engine.cluster.session import QUIET as SESSION

    os.environ.update(SESSION)
    try:
        function(config, lambda score: tune.report({SCORE: score, FAULT: None}), parameters)
    except MimeoError as error:
        tune.report({SCORE: float("-inf"), FAULT: [type(error).__name__, error.where, error.what, error.fix]})


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


def _ended(result: Any) -> Trial:
    if result.error is not None:
        raise _cause(result.error)
    metrics = result.metrics or {}
    fault = metrics.get(FAULT)
    error = getattr(errors, fault[0])(*fault[1:]) if fault else None
    return Trial(dict(result.config or {}), None if fault else metrics.get(SCORE), error)


def _cause(error: Exception) -> Exception:
    """A process that died is a matter of the cluster; what else a trial raised is a bug and is raised as it is."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayActorError):
        return ClusterError("study", "a trial's process died (out of memory?)", "run the same command again")
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error
