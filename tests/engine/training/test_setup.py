"""Ray Train as all trainings use it: places, values, our errors as themselves, a killed worker started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.errors import ClusterError, DataError
from engine.spec.recipe import ResourcesSpec
from engine.training import setup


def _resources(workers: int, threads: int = 1) -> ResourcesSpec:
    return ResourcesSpec(device="cpu", train_workers=workers, threads=threads)


class KillsAWorker:
    """Kills, with -9, the first training worker that unpickles it: before its loop begins."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if "RayTrainWorker" in Path("/proc/self/cmdline").read_text() and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _sums(config: dict[str, Any]) -> dict[str, Any]:
    """Adds the ranks over all workers; the process of rank 1 is killed at its first attempt."""
    import torch
    import torch.distributed as dist

    place = setup.place()
    marker = Path(config["marker"])
    if place.rank == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    total = torch.tensor([place.rank + 1])
    dist.all_reduce(total)
    part = place.part(6)
    sockets = [c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    return {
        "open": [ip for ip in sockets if not ip.endswith("127.0.0.1")],
        "listening": len(sockets) > 0,
        "total": int(total),
        "rank": place.rank,
        "part": (part.start, part.stop),
        "threads": torch.get_num_threads(),
    }


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_is_started_again_and_rank_0_answers(tmp_path: Path) -> None:
    marker, early = tmp_path / "killed", tmp_path / "killed-while-starting"
    config = {"marker": str(marker), "early": KillsAWorker(early)}
    out = setup.run(_sums, config, name="sums", resources=_resources(2, threads=2), max_failures=10)
    assert marker.exists()
    assert early.exists()
    assert out == {"total": 3, "rank": 0, "part": (0, 3), "threads": 2, "open": [], "listening": True}


def _refuses(config: dict[str, Any]) -> None:
    with Path(config["attempts"]).open("a") as stream:
        stream.write("x")
    raise DataError("image 7", "has changed", "put it back")


@pytest.mark.usefixtures("ray_cluster")
def test_our_own_error_comes_back_as_itself_at_once(tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(DataError) as caught:
        setup.run(_refuses, {"attempts": str(attempts)}, name="refuses", resources=_resources(1))
    assert (caught.value.where, caught.value.what, caught.value.fix) == ("image 7", "has changed", "put it back")
    assert attempts.read_text() == "x"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_cluster_holds_are_refused() -> None:
    with pytest.raises(ClusterError, match="10000 workers"):
        setup.run(_refuses, {}, name="many", resources=_resources(10_000))
