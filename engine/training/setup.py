"""What every Ray Train run shares: workers, devices, threads, and errors that come back as themselves."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from engine.cluster import memory
from engine.errors import ClusterError, MimeoError
from engine.spec.recipe import ResourcesSpec
from engine.storage import temporary

if TYPE_CHECKING:
    import torch

POLL_S = "0.5"
FINDINGS = (
    MimeoError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)
Config = TypeVar("Config", bound=Mapping[str, object])  # what the workers are sent
Returned = TypeVar("Returned")


class Ended(TypedDict):
    """How far a training came: whether it is done, and one line about it."""

    done: bool
    message: str


@dataclass(frozen=True)
class Place:
    """Where a training loop finds itself: its rank among `world_size` workers, and its device."""

    rank: int
    world_size: int
    device: torch.device

    def part(self, batch: int) -> slice:
        """This rank's rows of a global batch; `batch` must be divisible by the number of workers."""
        size = batch // self.world_size
        return slice(self.rank * size, (self.rank + 1) * size)


def place() -> Place:
    """The calling worker's place; valid inside a loop that `run` started."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    return Place(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())


def run(
    loop: Callable[[Config], Returned | None],
    config: Config,
    *,
    name: str,
    resources: ResourcesSpec,
    max_failures: int = 3,
) -> Returned:
    """Run `loop(config)` on `resources.train_workers` Ray Train workers and return what rank 0 returned ({} for None).

    Call it inside `engine.cluster.session.session`. Workers get one GPU each where `resources` gives cuda (nccl), else
    one CPU (gloo), and `resources.threads` torch threads. A MimeoError that a worker raises ends the run at once and is
    raised here as itself, and so is a plain bug; a killed process or a RuntimeError (torch.distributed, CUDA) starts
    the loop again up to `max_failures` times: the loop must resume from its own checkpoints. `config` travels by
    pickle; paths in it must be absolute, because workers start in a folder of their own. Raises ClusterError when the
    cluster can never hold the workers, or when they keep failing.
    """
    from engine.cluster.session import device

    kind = device(resources)
    await_room(resources, kind)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_S)
    for left in reversed(range(max_failures + 1)):
        with temporary.folder("train") as folder:
            trainer = _trainer(loop, config, name, resources, kind, max_failures, str(folder))
            try:
                returned: Any = beside(trainer.fit).return_value or {}
                return returned
            except Exception as error:
                if not left or not _died_while_starting(error):
                    raise _unwrap(error) from None
    raise AssertionError("the last attempt returns or raises")


def _trainer(
    loop: Callable[[Config], Returned | None],
    config: Config,
    name: str,
    resources: ResourcesSpec,
    kind: str,
    max_failures: int,
    folder: str,
) -> Any:
    import ray.train
    from ray.train.v2.api.callback import UserCallback

    api: Any = ray.train  # the static types are those of Train V1
    threads = resources.threads

    def worker(worker_config: Config) -> Returned | None:
        prepare(threads, kind)
        return loop(worker_config)

    class StopOnFindings(UserCallback):
        """What no second attempt can mend is raised in the controller, which does not retry its own errors."""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, FINDINGS):
                    raise error

    return _trainer_class()(
        worker,
        train_loop_config=config,
        torch_config=_torch_config(folder),
        scaling_config=api.ScalingConfig(
            num_workers=_workers(resources),
            use_gpu=kind == "cuda",
            resources_per_worker={"CPU": 1, "GPU": 1} if kind == "cuda" else {"CPU": 1},
            label_selector=dict(resources.labels) or None,
        ),
        run_config=api.RunConfig(
            name=name,
            storage_path=folder,
            failure_config=api.FailureConfig(max_failures=max_failures, controller_failure_limit=max_failures),
            callbacks=[StopOnFindings()],
        ),
    )


def _trainer_class() -> Any:
    """TorchTrainer without the two processes a run that nothing here needs: each start costs seconds of a small
    machine's CPU.

    No run hands data sets to Ray Train, and a private Ray ends with its only user: nobody has to free its placement
    groups.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    dropped: tuple[type, ...] = (DatasetsCallback,)
    if os.environ.get("MIMEO_PRIVATE_RAY"):
        dropped += (PlacementGroupCleanerCallback,)

    class Trainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            return [one for one in super()._create_default_callbacks() if not isinstance(one, dropped)]

    return Trainer


def _torch_config(folder: str) -> Any:
    """How the workers find each other: on a private Ray in `folder`, so that no port of theirs is open to others."""
    if not os.environ.get("MIMEO_PRIVATE_RAY"):
        return None
    from engine.training.rendezvous import ByFile

    return ByFile(folder=folder)


def _workers(resources: ResourcesSpec) -> int | tuple[int, int]:
    """A fixed number, or for elastic runs the fewest and the most."""
    fewest = resources.train_workers_min
    return resources.train_workers if fewest is None else (fewest, resources.train_workers)


def await_room(resources: ResourcesSpec, kind: str) -> None:
    """Wait for the workers' nodes where the recipe says so; refuse (ClusterError) what the cluster cannot hold."""
    from engine.cluster import nodes

    unit = "GPU" if kind == "cuda" else "CPU"
    fewest = resources.train_workers_min or resources.train_workers
    nodes.wait_for({unit: 1.0}, resources.train_workers, resources, None, enough=fewest)
    room = nodes.slots({unit: 1.0}, resources.labels)
    if fewest > room:
        raise ClusterError(
            "resources.train_workers",
            f"{fewest} workers of one {unit} each are asked for, the cluster has {room}",
            "ask for fewer, add nodes, or set resources.wait where an autoscaler starts them",
        )


def prepare(threads: int, kind: str) -> None:
    """Per-worker settings: torch's threads, freed memory, and kernels that repeat bit for bit where cuDNN has the
    choice."""
    import torch

    torch.set_num_threads(threads)
    if kind == "cpu":
        memory.keep_freed()
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def beside(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises, run beside the main thread.

    So Ray does not take over SIGINT, and a signal's exception finds the main thread in Python, not inside Ray's C++
    core, which would make a SystemError of it.
    """
    box: dict[Literal["result", "error"], Any] = {}

    def target() -> None:
        try:
            box["result"] = call()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=target, name="mimeo-ray", daemon=True)
    thread.start()
    thread.join()
    if "error" in box:
        raise box["error"]
    return box["result"]


def _died_while_starting(error: BaseException) -> bool:
    """A worker's death before its loop was under way: Ray Train takes it for a fault of its own controller and gives
    up."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError

    return isinstance(error, ControllerError) and isinstance(error.controller_failure, RayActorError)


def _unwrap(error: BaseException) -> BaseException:
    """The worker's own exception where there is one; ClusterError where workers died as processes."""
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    deaths = (RayActorError, WorkerHealthCheckFailedError)
    while isinstance(error, ControllerError):
        error = error.controller_failure
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    if all(isinstance(cause, deaths) for cause in causes):
        fix = "give them more memory, then run the same command again"
        return ClusterError("training", "its workers keep dying (out of memory?)", fix)
    return error
