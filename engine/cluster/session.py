"""Ray for one run: join the cluster that is there, or start a private one and leave nothing behind."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from engine.cluster import authentication, head
from engine.cluster.terminal import note
from engine.errors import ClusterError, MimeoError, StorageError
from engine.spec.recipe import ResourcesSpec
from engine.storage import log
from engine.storage.store import Store
from engine.text import shortened

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # every actor pool prints a warning at error level (ray-project/ray#57733)
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_worker_niceness": "0",  # the workers are the work
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives its session starts no Ray of its own, with open ports
}
PRIVATE = {
    "MIMEO_PRIVATE_RAY": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes this node away; on clusters it stays on
}
WORKER_BYTES = 256 * 2**20  # of memory that a worker takes at the least, once it has imported torch
SHARED = "/dev/shm"  # where Ray's object store lies, on systems that have it
SMALLEST_FILE = 100 * 2**20  # what Ray's object store is at the least: one file
_SAID = 1 << 16  # bytes of what Ray prints while it starts that are kept
QUIET_LOGGERS = ("ray", "ray.data", "ray.train", "ray._private", "ray.tune")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device(resources: ResourcesSpec) -> str:
    """The device that workers use, "cpu" or "cuda"; ClusterError when cuda is asked for and absent.

    Call it inside a session: what counts is whether the cluster has GPUs, not this machine. Where nodes are waited for
    (`resources.wait`), cuda that is asked for is taken to come.
    """
    from engine.cluster import nodes

    there = nodes.slots({"GPU": resources.gpus_per_actor}, resources.labels) > 0
    if resources.device == "cuda" and not there and not resources.wait:
        raise ClusterError(
            "resources.device",
            f"cuda is asked for, {_offer(resources, 'GPU')}",
            "use device: cpu or auto, add GPU nodes, or set resources.wait where an autoscaler starts them",
        )
    return "cuda" if resources.device == "cuda" or (resources.device == "auto" and there) else "cpu"


def need(resources: ResourcesSpec) -> dict[str, float]:
    """What one generating actor takes of a node."""
    own = {"CPU": resources.cpus_per_actor}
    return own | {"GPU": resources.gpus_per_actor} if device(resources) == "cuda" else own


def actors(resources: ResourcesSpec) -> int:
    """How many generating actors to run: as asked, or one for each GPU or CPU slot of the cluster.

    Raises ClusterError when more are asked for than the cluster holds, unless nodes are waited for (`resources.wait`).
    """
    from engine.cluster import nodes

    slots = nodes.slots(need(resources), resources.labels)
    if resources.actors is None:
        wanted = (
            slots if device(resources) == "cuda" else max(1, cores_of_cluster(resources.labels) // resources.threads)
        )
        return max(1, min(wanted, slots))
    if resources.actors > slots and not resources.wait:
        unit = "GPU" if device(resources) == "cuda" else "CPU"
        raise ClusterError(
            "resources.actors",
            f"{resources.actors} actors of {need(resources)[unit]:g} {unit} are asked for, "
            f"{_offer(resources, unit)}: {slots} of them",
            "ask for fewer, add nodes, or set resources.wait where an autoscaler starts them",
        )
    return resources.actors


def _offer(resources: ResourcesSpec, unit: str) -> str:
    from engine.cluster import nodes

    labels = ", ".join(f"{key}={value}" for key, value in resources.labels.items())
    total = sum(node["Resources"].get(unit, 0) for node in nodes.labelled(resources.labels))
    return f"the cluster has {total:g} {unit}s" + (f" with {labels}" if labels else "")


def cores_of_cluster(labels: Mapping[str, str] | None = None) -> int:
    """CPU cores that the cluster's nodes with these labels offer; of a private Ray no more than this process may
    use."""
    from engine.cluster import nodes

    total = int(sum(node["Resources"].get("CPU", 0) for node in nodes.labelled(labels or {})))
    return min(total, cores()) if _is_private() else total


def _is_private() -> bool:
    return bool(os.environ.get("MIMEO_PRIVATE_RAY"))


def _quieten() -> None:
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)


@contextmanager
def _silent_start() -> Iterator[None]:
    """Keep what Ray's C++ core prints while it starts; an exception gets it as a note."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception as error:
            said.seek(0)
            error.add_note(said.read(_SAID).decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the caller's SIGTERM handler: `ray.init` would install two of its own, which end the process with other exit
    codes."""
    from ray._private import utils

    setter, handler = utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    came = threading.Event()

    def caught(number: int, frame: FrameType | None) -> None:
        came.set()
        if callable(handler):
            handler(number, frame)

    utils.set_sigterm_handler = lambda handler: None
    if replaced := threading.current_thread() is threading.main_thread() and callable(handler):
        signal.signal(signal.SIGTERM, caught)
    try:
        yield
    finally:
        utils.set_sigterm_handler = setter
        if replaced:
            signal.signal(signal.SIGTERM, handler)
    if came.is_set() and callable(handler):  # raised where Ray's C++ core loses what is raised
        handler(signal.SIGTERM, None)


@contextmanager
def _private_start() -> Iterator[None]:
    """The start of a private Ray: one line where it fails."""
    try:
        with _own_sigterm(), _silent_start():
            yield
    except Exception as error:
        raise _not_started(error) from None


def _is_read_only(folder: str) -> bool:
    return Path(folder).is_dir() and not os.access(folder, os.W_OK)


def _check_machine(resources: ResourcesSpec) -> None:
    """What a private Ray would find out after a minute, or never."""
    from ray._private.utils import get_system_memory

    for name, count in (("actors", resources.actors or 1), ("train_workers", resources.train_workers)):
        need, there = count * WORKER_BYTES, get_system_memory()
        if need > there:
            what = f"{count:,} processes need {need / 2**30:.0f} GiB at the least, this machine has {there / 2**30:.0f}"
            raise ClusterError(f"resources.{name}", what, "ask for fewer, or name a cluster by RAY_ADDRESS")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY and limit < SMALLEST_FILE:
        what = f"files may have {limit:,} bytes here, Ray needs {SMALLEST_FILE:,}"
        raise StorageError("ulimit -f", what, "raise the limit")


def _not_started(error: Exception) -> MimeoError:
    """Why a private Ray does not start, as one line; the rest is in a log file."""
    path = log.write("".join(traceback.format_exception(error)))
    more = f"see {path}" if path else "no folder takes its log: set MIMEO_CACHE to one that can be written"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if limit != resource.RLIM_INFINITY:
        what = f"files may have {limit:,} bytes here, and Ray does not start"
        return StorageError("ulimit -f", what, f"raise the limit; {more}")
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ClusterError("Ray", f"does not start on this machine ({shortened(first, 200)})", more)


def _configure_data() -> None:
    from ray.data import DataContext
    from ray.data._internal.logging import configure_logging

    configure_logging()  # Ray Data sets its levels on first use; ours must come after
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a long shard or a slow model download is not a hang


@contextmanager
def session(resources: ResourcesSpec, *, num_cpus: int | None = None, store: Store | None = None) -> Iterator[None]:
    """Ray is up inside the block; nested and repeated use is fine.

    Joins the cluster that RAY_ADDRESS names (as inside `ray job submit`), whose nodes must be able to do the work and
    to see
    `store`, the output; else starts a private local Ray, for this user alone, whose processes and files end with the
    block.
    `num_cpus` overrides the private Ray's CPU count. Raises ConfigError for a RAY_AUTH_MODE that Ray does not know,
    ClusterError or StorageError where Ray cannot start.
    """
    _quieten()
    import ray

    from engine.cluster import nodes

    if ray.is_initialized():
        yield
        return
    authentication.check_mode()
    if os.environ.get("RAY_ADDRESS"):
        with _joined():
            nodes.check(store)
            yield
        return
    _check_machine(resources)
    with authentication.private() as folder:
        os.environ.update(PRIVATE)
        try:
            wanted = max(
                num_cpus or 0,
                cores(),
                -(-(resources.actors or 1) * max(resources.cpus_per_actor, 0.01) // 1) + 1,
                resources.train_workers + 1,
            )
            _shorten_errors(private=True)
            with _private_start():
                ray.init(
                    num_cpus=int(wanted),
                    num_gpus=0 if resources.device == "cpu" else None,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                    _plasma_directory=str(folder.parent) if _is_read_only(SHARED) else None,
                    _node_ip_address="127.0.0.1",
                )
            with head.lived(folder.parent):
                _configure_data()
                yield
        finally:
            ray.shutdown()
            for name in PRIVATE:
                os.environ.pop(name, None)


def _shorten_errors(private: bool = False) -> None:
    """Of what Ray prints on a driver about lost nodes and workers keep the first line; the rest is in Ray's logs.

    Of a private Ray nothing is kept: its one node is this machine, and `head.lived` says when it dies.
    """
    from ray._private import worker

    def first_line(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
        text = " ".join(str(data["lines"][0]).partition("\n")[0].split())
        if "has been marked dead" in text and not private:
            note(f"ray: {text.partition(' because')[0]}", sys.stderr)

    worker.print_to_stdstream = first_line


@contextmanager
def _joined() -> Iterator[None]:
    import ray

    address = os.environ["RAY_ADDRESS"]
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and not head.answers(address):  # Ray's own client ends the process then
            raise OSError("nobody answers")
        with _own_sigterm(), _silent_start():
            _shorten_errors()
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:  # RayError: no token
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise ClusterError(
            "RAY_ADDRESS",
            f"cannot join the cluster at {address} ({first})",
            "check the address, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH",
        ) from None
    where = ray.get_runtime_context().gcs_address
    lost = threading.Event()
    try:
        with head.watched(where) as lost:
            _configure_data()
            yield
    finally:
        if not lost.is_set():
            ray.shutdown()
