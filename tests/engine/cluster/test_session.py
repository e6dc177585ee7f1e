"""Ray sessions: resources are counted, and nothing stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cluster import session
from engine.errors import ClusterError
from engine.spec.models import ResourcesSpec

SCRIPT = """
import glob, os
from engine.cluster.session import session
from engine.spec.models import ResourcesSpec
import ray
with session(ResourcesSpec(device="cpu", actors=3, cpus_per_actor=1)):
    assert ray.cluster_resources()["CPU"] >= 4
    folder = ray._private.worker.global_worker.node.get_session_dir_path()
    print(folder)
    pid = os.getpid()
assert not os.path.exists(folder)
"""


def test_actors_are_counted_against_the_cluster(ray_cluster: None) -> None:
    assert session.device(ResourcesSpec(device="auto")) == "cpu"
    assert session.actors(ResourcesSpec(device="cpu", actors=3, cpus_per_actor=1)) == 3
    with pytest.raises(ClusterError, match="5000 actors"):
        session.actors(ResourcesSpec(device="cpu", actors=5000, cpus_per_actor=1))
    with pytest.raises(ClusterError, match="0 GPUs"):
        session.device(ResourcesSpec(device="cuda"))


def test_a_private_ray_leaves_nothing_behind(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip().splitlines()[-1])
    assert not folder.parent.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder.parent) not in running


def test_an_absent_cluster_is_one_line(tmp_path: Path) -> None:
    code = "from engine.cluster.session import session\nfrom engine.spec.models import ResourcesSpec\nfrom engine.errors import ClusterError\ntry:\n    with session(ResourcesSpec()): pass\nexcept ClusterError as e: print('line:', e)\n"
    env = {
        **os.environ,
        "RAY_ADDRESS": "127.0.0.1:1",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "2",
        "RAY_NUM_REDIS_GET_RETRIES": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert "line: RAY_ADDRESS: cannot join the cluster" in result.stdout, result.stderr
