"""Ray sessions: resources are counted, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cluster import session
from engine.errors import ClusterError
from engine.spec.recipe import ResourcesSpec

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import glob, os
from engine.cluster.session import session
from engine.spec.recipe import ResourcesSpec
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


def test_what_outlives_its_session_starts_no_ray_of_its_own(tmp_path: Path) -> None:
    """Such as the thread that waits for Ray Tune when a signal has ended the session: Ray's own would have open
    ports."""
    code = (
        "from engine.cluster.session import session\nfrom engine.spec.recipe import ResourcesSpec\n"
        "with session(ResourcesSpec(device='cpu')):\n    import ray\n    ray.put(1)\n"
        "try:\n    ray.put(1)\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print(ray.is_initialized())"
    )
    words = [sys.executable, "-c", code]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-2:] == ["RaySystemError", "False"]


def test_an_absent_cluster_is_one_line(tmp_path: Path) -> None:
    code = (
        "from engine.cluster.session import session\nfrom engine.spec.recipe import "
        "ResourcesSpec\nfrom engine.errors import ClusterError\ntry:\n    with "
        "session(ResourcesSpec()): pass\nexcept ClusterError as e: print('line:', e)\n"
    )
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


KILLED = """
import os, sys, time
from engine.cluster.session import session
from engine.spec.recipe import ResourcesSpec
import ray
with session(ResourcesSpec(device="cpu")):
    node = ray._private.worker._global_node
    print(os.path.dirname(os.path.dirname(node.get_session_dir_path())), flush=True)
    node.all_processes["raylet"][0].process.kill()
    time.sleep(60)
"""


def test_a_private_ray_that_dies_ends_the_process_in_one_line(tmp_path: Path) -> None:
    """Ray itself would end it with exit code 1 and without a word."""
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    result = subprocess.run(
        [sys.executable, "-c", KILLED], env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False
    )
    assert result.returncode == 6, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: Ray: its process raylet on this machine died")
    assert not Path(result.stdout.strip()).exists()


def test_sigterm_while_ray_starts_is_143(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pipelines.cli", "generate", "quickstart"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "starting Ray ...\n"
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
        assert process.wait(timeout=120) == 143
    assert said == "error: terminated; the same command goes on from here\n"


@pytest.mark.parametrize("name", ["actors", "train_workers"])
def test_what_a_machine_cannot_hold_is_known_before_ray_starts(name: str) -> None:
    with pytest.raises(ClusterError, match=f"resources.{name}: 10,000 processes need 2500 GiB at the least"):
        session._check_machine(ResourcesSpec(**{name: 10_000}))


def test_a_limit_on_files_is_known_before_ray_starts() -> None:
    code = (
        "import resource, sys\n"
        "from engine.cluster.session import session\n"
        "from engine.errors import StorageError\n"
        "from engine.spec.recipe import ResourcesSpec\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    with session(ResourcesSpec()): pass\n"
        "except StorageError as error: print(error)\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.startswith("ulimit -f: files may have 50,000 bytes here, Ray needs 104,857,600")
